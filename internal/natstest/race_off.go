//go:build !race

package natstest

// Race says whether the race detector is on: what repeats itself for the sake of
// chance, and not of the schedule, may then do so less often.
const Race = false

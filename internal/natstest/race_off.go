//go:build !race

package natstest

// Race says whether the race detector is on.
const Race = false

// Package beat has what many processes do now and then fall together in time.
//
// A server to which a thousand processes send something each second or two, one after the
// other, wakes for each: a reader, what stores it, a writer, and it waits a little for more
// before it sleeps again. That costs several times what it does with the message. If all of
// them send on the beats of a clock that they have in common, what comes in one beat wakes it
// once. The clock is the wall clock, as good as NTP keeps it: where it is wrong nothing is
// lost but what would have been saved.
package beat

import "time"

// In returns how long to wait from now until the last beat that comes within d, one of a
// beat each every; or d, if none does. now is of [time.Now]. A clock that is set meanwhile
// changes nothing of a wait that has begun.
func In(now time.Time, d, every time.Duration) time.Duration {
	if left := now.Add(d).Truncate(every).Sub(now); left > 0 {
		return left
	}
	return d
}

package lease

import "time"

// An Instant is a point on the clock that a holder judges itself by. It counts
// the time that the machine was suspended, which Go's monotonic clock leaves out.
type Instant struct {
	at     time.Time // monotonic and wall
	asleep time.Duration
}

// A Clock tells how long the machine has been suspended since it started. Go's own
// clock gives the rest, so a test in fake time needs no other clock.
type Clock func() (asleep time.Duration)

// Now reads the clock.
func (c Clock) Now() Instant { return Instant{time.Now(), c()} }

// Since returns how much time has passed, on the clock that says most: monotonic
// plus suspended, or wall. The wall clock covers systems that do not tell their
// suspensions; stepped forward it ends a lease early, which is safe.
func (c Clock) Since(i Instant) time.Duration {
	now := c.Now()
	awake := now.at.Sub(i.at) + max(0, now.asleep-i.asleep)
	wall := now.at.Round(0).Sub(i.at.Round(0))
	return max(awake, wall)
}

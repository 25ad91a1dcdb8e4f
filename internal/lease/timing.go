package lease

import "time"

// What the protocol assumes and allows itself.
const (
	// drift bounds the difference of two clocks' rates.
	drift = 0.01
	// slack is added to a challenger's wait.
	slack = 5 * time.Millisecond
	// minMargin is the least time between a holder's stop and a lease's end.
	minMargin = 20 * time.Millisecond
	// looks is how often a holder reads whether its record is gone, having been told so.
	looks = 10
	// handoverWindow is how long a claim that was given to one is left to it.
	handoverWindow = time.Second
)

// margin is how long before the lease's end its holder stops trusting it.
func margin(lease time.Duration) time.Duration { return max(minMargin, lease/20) }

// trust is how long after sending a renewal its holder trusts it.
func trust(lease time.Duration) time.Duration { return lease - margin(lease) }

// renewEvery is the longest time from one renewal to the next (ADR 0015): two come within
// the trust, and after the second a fifth of the lease is left.
func renewEvery(lease time.Duration) time.Duration { return lease * 3 / 8 }

// answerWithin is how long a write or a read of the session is waited for before it is
// sent again.
func answerWithin(lease time.Duration) time.Duration { return lease * 3 / 10 }

// beatOf is the beat on which all renew leases as long as this, once in eight: so far apart
// that a server wakes for many at a time, and so near that it gets a fraction of all at a time.
func beatOf(lease time.Duration) time.Duration { return renewEvery(lease) * 100 / 805 }

// patience is how long a challenger watches one revision before it may end it.
func patience(lease time.Duration) time.Duration {
	return lease + time.Duration(float64(lease)*drift) + slack
}

// suspect is how long a holder may be silent before observers say so: two of its
// renewals have not come.
func suspect(lease time.Duration) time.Duration { return lease * 8 / 10 }

// keepFor is the server's TTL of a session: when everyone has forgotten it.
func keepFor(lease time.Duration) time.Duration { return max(time.Minute, 10*lease) }

// keepEnded is the server's TTL of a PID's claim that is left or dead.
const keepEnded = 7 * 24 * time.Hour

// outage is the gap between acknowledgements of our own renewals after which an
// incumbent with this lease may have run out through no fault of its own.
func outage(lease time.Duration) time.Duration { return lease * 11 / 20 }

// catchUp is how long after a gap between acknowledgements of ours nobody with this lease is
// ended: if the store stood still in the gap, the renewals that waited arrive first. If it
// did not, this is what a challenger with a longer lease than the one it watches adds to the
// patience.
func catchUp(lease time.Duration) time.Duration { return min(lease/10, longestCatchUp) }

const longestCatchUp = 250 * time.Millisecond

// A Vigil is a challenger's clock for one session: which revision it watches, and
// since when. The zero Vigil has seen nothing. It is pure; the caller gives it
// times of Go's monotonic clock, which never counts too much.
type Vigil struct {
	rev   uint64
	since time.Time
	lease time.Duration
}

// See takes a revision that was learned at the time given, with the lease that the
// record states. It reports whether it replaced another: a sign of life.
func (v *Vigil) See(rev uint64, lease time.Duration, at time.Time) (renewed bool) {
	if !v.since.IsZero() && rev == v.rev {
		return false
	}
	renewed = !v.since.IsZero()
	v.rev, v.since, v.lease = rev, at, lease
	return renewed
}

// Amend takes the lease that the record of the watched revision states, where another
// was taken on the word of the feed.
func (v *Vigil) Amend(lease time.Duration) { v.lease = lease }

// Postpone restarts the wait: until the time given the store took no writes, so
// silence proves nothing. Not for an outage so short that no lease ran out in it.
func (v *Vigil) Postpone(until time.Time) {
	if until.After(v.since) {
		v.since = until
	}
}

// Due returns when the session may be ended, under the guard of its revision.
func (v *Vigil) Due() (guard uint64, at time.Time) { return v.rev, v.since.Add(patience(v.lease)) }

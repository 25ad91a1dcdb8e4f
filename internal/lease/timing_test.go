package lease

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// The order of the protocol's times, for every lease a process may have: a holder
// stops before a challenger may begin, however the clocks' rates differ.
func TestTimes(t *testing.T) {
	for l := time.Second; l <= 10*time.Minute; l += l / 7 {
		if trust(l) <= 0 || trust(l) > l-minMargin {
			t.Errorf("trust(%v) = %v, want less than the lease by %v", l, trust(l), minMargin)
		}
		// The holder's clock runs slow and the challenger's fast, 1 % apart.
		holder := time.Duration(float64(trust(l)) * (1 + drift))
		if patience(l) <= holder {
			t.Errorf("patience(%v) = %v, not after a slow holder's %v", l, patience(l), holder)
		}
		if patience(l) < l+time.Duration(float64(l)*drift) {
			t.Errorf("patience(%v) = %v, want the drift in it", l, patience(l))
		}
		// Two renewals may fail before the hold runs out, and a grace of half a lease
		// leaves room for one.
		if 2*renewEvery(l) >= trust(l) {
			t.Errorf("renewEvery(%v) = %v: one renewal lost ends the hold", l, renewEvery(l))
		}
		if renewEvery(l) >= trust(l)-l/2 {
			t.Errorf("renewEvery(%v) = %v: a grace of half a lease ends every term", l, renewEvery(l))
		}
		if renewEvery(l)+answerWithin(l) >= trust(l)-l/4 {
			t.Errorf("answerWithin(%v) = %v: a renewal lost ends every term that has a grace of a quarter", l, answerWithin(l))
		}
		if keepFor(l) < 10*l || keepFor(l) < time.Minute {
			t.Errorf("keepFor(%v) = %v: the server forgets a session that may be trusted", l, keepFor(l))
		}
		// A silence that is no outage is short enough that nobody ran out in it.
		if outage(l)+renewEvery(l) > trust(l) {
			t.Errorf("outage(%v) = %v: an incumbent may have run out in a shorter one", l, outage(l))
		}
	}
}

func TestVigil(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Unix(1000, 0).Add(d) }
	const l = 10 * time.Second
	after := patience(l)
	type step struct {
		rev      uint64
		lease    time.Duration
		at       time.Duration
		postpone bool // until at, instead of See
		renewed  bool
	}
	for _, c := range []struct {
		name  string
		steps []step
		guard uint64
		due   time.Duration
	}{
		{"one revision", []step{{rev: 5, lease: l, at: 0}}, 5, after},
		{"the same again counts from the first", []step{{rev: 5, lease: l, at: 0}, {rev: 5, lease: l, at: 3 * time.Second}}, 5, after},
		{"a newer one counts anew", []step{{rev: 5, lease: l, at: 0}, {rev: 6, lease: l, at: 3 * time.Second, renewed: true}}, 6, 3*time.Second + after},
		{"an older one too: what was known was wrong", []step{{rev: 5, lease: l, at: 0}, {rev: 4, lease: l, at: time.Second, renewed: true}}, 4, time.Second + after},
		{"the record's lease, as of the newest", []step{{rev: 5, lease: l, at: 0}, {rev: 6, lease: 2 * l, at: time.Second, renewed: true}}, 6, time.Second + patience(2*l)},
		{"absent", []step{{rev: 0, lease: l, at: 0}}, 0, after},
		{"absent, then there", []step{{rev: 0, lease: l, at: 0}, {rev: 9, lease: l, at: time.Second, renewed: true}}, 9, time.Second + after},
		{"there, then absent", []step{{rev: 9, lease: l, at: 0}, {rev: 0, lease: 2 * l, at: time.Second, renewed: true}}, 0, time.Second + patience(2*l)},
		{"postponed", []step{{rev: 5, lease: l, at: 0}, {at: 4 * time.Second, postpone: true}}, 5, 4*time.Second + after},
		{"not postponed by what was before", []step{{rev: 5, lease: l, at: 5 * time.Second}, {at: 4 * time.Second, postpone: true}}, 5, 5*time.Second + after},
	} {
		var v Vigil
		for _, s := range c.steps {
			if s.postpone {
				v.Postpone(at(s.at))
				continue
			}
			if got := v.See(s.rev, s.lease, at(s.at)); got != s.renewed {
				t.Errorf("%s: See(%d) = %t, want %t", c.name, s.rev, got, s.renewed)
			}
		}
		if guard, due := v.Due(); guard != c.guard || !due.Equal(at(c.due)) {
			t.Errorf("%s: Due() = %d, +%v, want %d, +%v", c.name, guard, due.Sub(at(0)), c.guard, c.due)
		}
	}
}

func TestClockTakesWhatSaysMost(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		var asleep time.Duration
		c := Clock(func() time.Duration { return asleep })
		began := c.Now()
		time.Sleep(time.Second)
		if got := c.Since(began); got != time.Second {
			t.Errorf("Since = %v after a second awake", got)
		}
		asleep += 10 * time.Second
		if got := c.Since(began); got != 11*time.Second {
			t.Errorf("Since = %v after a second awake and ten asleep", got)
		}
		asleep -= 20 * time.Second // a system that takes it back is not believed
		if got := c.Since(began); got != time.Second {
			t.Errorf("Since = %v with a suspension that ran backwards, want what is left: 1s", got)
		}
	})
}

func TestHoldEndsByTheClock(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		const l = 5 * time.Second
		var asleep time.Duration
		clock := Clock(func() time.Duration { return asleep })
		h := newHold(t.Context(), 7, l, clock, clock.Now())
		ctx := h.Context(0)
		if !h.Valid(0) || !h.Valid(time.Second) || h.Valid(l) {
			t.Error("a new hold is not valid, or valid with a grace of a lease")
		}
		time.Sleep(trust(l) - time.Second)
		if !h.Valid(0) || h.Valid(time.Second) {
			t.Error("a second before the deadline: want valid without a grace, not with one")
		}
		if !h.renew(clock.Now()) {
			t.Error("renew = false before the deadline")
		}
		time.Sleep(trust(l) - time.Millisecond)
		synctest.Wait()
		if !h.Valid(0) || ctx.Err() != nil {
			t.Error("ended before the deadline that the renewal set")
		}
		// The machine is suspended: no timer has fired, and nothing is valid.
		asleep += time.Hour
		if h.Valid(0) {
			t.Error("valid after an hour's suspension")
		}
		if h.renew(clock.Now()) || h.Valid(0) {
			t.Error("a renewal after the deadline revived a hold")
		}
		synctest.Wait()
		if ctx.Err() == nil {
			t.Error("the context lives after a renewal found the hold over")
		}
	})
}

// A grace that was used up does not spoil the hold for who comes after a renewal.
func TestFuseOfAHoldThatIsRenewed(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		const l, grace = 5 * time.Second, 2 * time.Second
		clock := Clock(func() time.Duration { return 0 })
		h := newHold(t.Context(), 7, l, clock, clock.Now())
		before := h.Context(grace)
		time.Sleep(trust(l) - grace)
		synctest.Wait()
		if before.Err() == nil || !h.Valid(0) {
			t.Fatal("want the context with a grace ended, and the hold not")
		}
		if !h.renew(clock.Now()) {
			t.Fatal("renew = false before the deadline")
		}
		after := h.Context(grace)
		if after.Err() != nil || !h.Valid(grace) {
			t.Fatal("the hold was renewed, and a new context with that grace has ended already")
		}
		if before.Err() == nil {
			t.Error("the context that ended came back")
		}
		time.Sleep(trust(l) - grace)
		synctest.Wait()
		if after.Err() == nil {
			t.Error("the context goes on within the grace")
		}
		h.end(ErrLeft)
	})
}

package balance

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// OnRevoke is told when its time is over; its indices are nobody else's before it returns.
func TestClusterRevokeTimeout(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		const patience, overtime = 2 * time.Second, 20 * time.Second
		told := make(chan time.Duration, 1)
		b := in(t, s, "b", Config{Mode: StrictIndex, RevokeTimeout: patience, OnRevoke: func(ctx context.Context, _ []int) {
			if len(told) > 0 { // the last one, of withdraw
				return
			}
			began := time.Now()
			<-ctx.Done()
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				t.Errorf("OnRevoke's context ends with %v", ctx.Err())
			}
			told <- time.Since(began)
			time.Sleep(overtime)
		}})
		began := time.Now()
		a := in(t, s, "a", Config{Mode: StrictIndex}) // 0 is its now
		a.await(t, "0", func() bool { return slices.Equal(indices(a), []int{0}) })
		if took := time.Since(began); took < patience+overtime || took > patience+overtime+time.Second {
			t.Errorf("a has the index after %v, want when OnRevoke has returned: %v", took, patience+overtime)
		}
		select {
		case took := <-told:
			if took != patience {
				t.Errorf("OnRevoke was told that its time is over after %v, want %v", took, patience)
			}
			told <- took
		default:
			t.Error("OnRevoke was not called")
		}
		withdraw(t, b)
		withdraw(t, a)
	})
}

// Evidence takes a member that has crashed out of the fabric's view, and in a strict mode
// frees nothing that its lease holds.
func TestClusterStrictIgnoresEvidence(t *testing.T) {
	for _, mode := range []Mode{StrictIndex, StrictEpoch} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			a := in(t, s, "a", Config{Mode: mode, Layout: Sticky, NotReady: true}) // coordinates
			b := in(t, s, "b", Config{Mode: mode, Layout: Sticky})
			if err := a.SetReady(limit(t, time.Minute), true); err != nil {
				t.Fatal(err)
			}
			a.await(t, "1", func() bool { return slices.Equal(indices(a), []int{1}) })
			b.await(t, "0", func() bool { return slices.Equal(indices(b), []int{0}) && b.Share().Total == 2 })
			d := keep(t, a.Group)
			d.next("join a", "join b")
			time.Sleep(10 * time.Second) // the view is quiet
			b.link.Cut()
			b.link.Kill()
			time.Sleep(20 * time.Millisecond) // until the server knows
			began := time.Now()
			if err := a.node.Send(limit(t, time.Minute), "b", nil); err != nil {
				t.Fatal(err)
			}
			for range a.node.Changes(limit(t, time.Minute)) {
				if len(a.node.View().Members) == 1 {
					break
				}
			}
			if took := time.Since(began); took > ttl/2 {
				t.Errorf("mode %d: b has been found after %v", mode, took)
			}
			a.await(t, "0", func() bool { return slices.Equal(indices(a), []int{0}) })
			if took := time.Since(began); took < ttl*6/10 || took > ttl+time.Second {
				t.Errorf("mode %d: b's index is another's after %v, want about a lease of %v", mode, took, ttl)
			}
			d.next("suspect b", "update b not ready 0", "fail b by unreachable")
			b.link.Heal()
			b.await(t, "back", func() bool { return b.Share().First >= 0 && b.Share().Total == 2 })
			withdraw(t, b)
			withdraw(t, a)
		})
	}
}

// Share goes by the clock: who was stopped for longer than its lease has nothing, although
// nothing has told it so yet.
func TestClusterStrictShareGoesByTheClock(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := in(t, s, "a", Config{Mode: StrictIndex})
		a.await(t, "0", func() bool { return slices.Equal(indices(a), []int{0}) })
		strict := a.src.(*member).strict
		held, hold := strict.usable, strict.hold
		strict.use(held, nil) // as a hold that has run out
		if got := a.Share(); got.First != -1 || got.Total != 1 {
			t.Errorf("the lease has run out, and it has %v", got)
		}
		strict.use(held, hold)
		withdraw(t, a)
	})
}

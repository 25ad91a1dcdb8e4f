package balance

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// wishOf reads what a member asks for, as the bucket holds it.
func wishOf(t *testing.T, m *seen) (w wish) {
	t.Helper()
	e, err := m.node.Host().Session.Bucket().Get(limit(t, time.Minute), groupKey("g", string(m.node.PID())))
	if err == nil {
		err = json.Unmarshal(e.Value, &w)
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// landLate writes a wish of m's as if it had been on its way for long.
func landLate(t *testing.T, m *seen, w wish) {
	t.Helper()
	value, err := json.Marshal(w)
	if err == nil {
		err = m.node.Host().Session.Want(limit(t, time.Minute), w.Key, w.Inc, value, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A wish of an earlier membership of the same incarnation lands after those of the next:
// that one keeps what it has until its work on it has stopped, and gets it back.
func TestClusterStrictLateWish(t *testing.T) {
	for name, gone := range map[string]bool{"of leaving": true, "of joining": false} {
		t.Run(name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				cfg := Config{Mode: StrictIndex, Layout: Sticky, Workers: 2}
				a, b := in(t, s, "a", cfg), in(t, s, "b", cfg)
				a.await(t, "two of four", func() bool { return len(indices(a)) == 2 && a.Share().Total == 4 })
				late := wishOf(t, a)
				late.Gone = gone
				withdraw(t, a)
				var stopped atomic.Bool
				cfg.OnRevoke = func(ctx context.Context, _ []int) {
					select {
					case <-time.After(3 * time.Second):
					case <-ctx.Done():
					}
					stopped.Store(true)
				}
				a = inBy(t, a.node, a.link, cfg)
				a.await(t, "two of four again", func() bool { return len(indices(a)) == 2 && a.Share().Total == 4 })
				mine := indices(a)
				landLate(t, a, late)
				for range 1000 {
					for _, i := range mine {
						if !stopped.Load() && slices.Contains(indices(b), i) {
							t.Fatalf("b has %d while a works on it", i)
						}
					}
					time.Sleep(10 * time.Millisecond)
				}
				a.await(t, "two of four at last", func() bool { return len(indices(a)) == 2 && a.Share().Total == 4 })
				if got := wishOf(t, a); got.Gone {
					t.Errorf("the wish is %+v", got)
				}
				withdraw(t, a)
				withdraw(t, b)
			})
		})
	}
}

// A wish that lands late hides that something was given up: it is said again.
func TestClusterStrictLateAcknowledgement(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		cfg := Config{Mode: StrictIndex, Workers: 2}
		coordinator := in(t, s, "z", Config{Mode: StrictIndex, Passive: true})
		stopping, stop := make(chan struct{}), make(chan struct{})
		var once sync.Once
		cfg.OnRevoke = func(ctx context.Context, _ []int) {
			once.Do(func() { close(stopping) })
			<-stop
		}
		b := in(t, s, "b", cfg)
		late := wishOf(t, b)
		cfg.OnRevoke = nil
		node, done := nodeOn(t, s.Link(), "a"), make(chan *seen)
		go func() { done <- inBy(t, node, nil, cfg) }()
		<-stopping
		coordinator.link.CutReplies() // it learns of two wishes at once
		close(stop)
		for wishOf(t, b).Acked == 0 {
			time.Sleep(time.Millisecond)
		}
		landLate(t, b, late)
		coordinator.link.Heal()
		a := <-done
		a.await(t, "0 and 1", func() bool { return len(indices(a)) == 2 && slices.Contains(indices(a), 0) })
		b.await(t, "2 and 3", func() bool { return len(indices(b)) == 2 && slices.Contains(indices(b), 2) })
		for _, m := range []*seen{a, b, coordinator} {
			withdraw(t, m)
		}
	})
}

// What was acknowledged in a bucket that is lost is not said in the next one, where the
// epochs begin again.
func TestClusterStrictForgetsWhatItAcknowledged(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		cfg := Config{Mode: StrictIndex, Workers: 2}
		b := in(t, s, "b", cfg)
		for range 3 {
			a := in(t, s, "a", cfg)
			b.await(t, "2 and 3", func() bool { return slices.Contains(indices(b), 2) })
			withdraw(t, a)
			if err := a.node.Leave(limit(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			b.await(t, "0 and 1", func() bool { return slices.Contains(indices(b), 0) })
		}
		if wishOf(t, b).Acked == 0 {
			t.Fatal("b has given nothing up")
		}
		inc := b.node.Incarnation()
		if _, err := s.Connect().Request("$JS.API.STREAM.DELETE.KV_fab_c_production", nil, time.Second); err != nil {
			t.Fatal(err)
		}
		for b.node.Incarnation() == inc || b.Share().First < 0 {
			time.Sleep(10 * time.Millisecond)
		}
		if w := wishOf(t, b); w.Acked != 0 || w.Inc == inc {
			t.Errorf("in the new bucket b says %+v", w)
		}
		withdraw(t, b)
	})
}

// A member whose connection was away reads the group's view when it is back, and does not
// wait for the next beacon.
func TestClusterReadsAfterAReconnect(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := in(t, s, "a", Config{}), in(t, s, "b", Config{})
		b.link.Cut()
		b.link.Kill()
		c := in(t, s, "c", Config{})
		a.awaitShare(t, time.Minute, 0, 1, 3)
		b.link.Heal()
		if took := b.awaitShare(t, time.Minute, 1, 1, 3); took > time.Second {
			t.Errorf("b has its share %v after it could connect again", took)
		}
		for _, m := range []*seen{a, b, c} {
			withdraw(t, m)
		}
	})
}

// What was being taken from a member that is over is nobody's, also while its place is
// kept for the next incarnation.
func TestPlanFreesWhatAKeptPlaceWasGivingUp(t *testing.T) {
	k := kind{mode: StrictIndex, sticky: true}
	line := func(pid string, inc uint64) *roster.Member {
		return &roster.Member{PID: pid, Inc: inc, Ask: roster.Ask{Workers: 1, Stay: inc, Kind: k.String()}}
	}
	x, y := line("x", 1), line("y", 2)
	x.Slots, x.Going, x.Mark = "0", "1", 5
	before := &roster.View{Epoch: 5, Token: 1, Kind: k.String(), Units: 2, Members: []*roster.Member{x, y}}
	away := line("x", 1)
	away.Away = true
	next := &roster.View{Epoch: 6, Kind: k.String(), Units: 2, Members: []*roster.Member{away, line("y", 2)}}
	poll{ended: map[identity]bool{identityOf(x): true}, acked: map[identity]uint64{}}.plan(before, next)
	if x, _ := next.Find("x"); x.Slots != "0" || x.Going != "" {
		t.Errorf("x has %q, and is giving up %q", x.Slots, x.Going)
	}
	if y, _ := next.Find("y"); y.Slots != "1" {
		t.Errorf("y has %q, want 1", y.Slots)
	}
}

package fabric_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// changesOf gathers what n sees of pid from now on, until the function is called.
func changesOf(t *testing.T, n *fabric.Node, pid fabric.PID) func() []string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan []string)
	began := make(chan struct{})
	go func() {
		var all []string
		synced := false
		for c, err := range n.Changes(ctx) {
			switch {
			case err != nil:
			case c.Kind == fabric.Synced:
				synced = true
				close(began)
			case synced && c.Member.PID == pid && c.Reason != 0:
				all = append(all, c.Kind.String()+" "+c.Reason.String())
			case synced && c.Member.PID == pid:
				all = append(all, c.Kind.String())
			}
		}
		seen <- all
	}()
	<-began
	return func() []string { cancel(); return <-seen }
}

func sees(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// goneAfter returns how long it takes until n's view lacks the PIDs.
func goneAfter(t *testing.T, n *fabric.Node, pids ...fabric.PID) time.Duration {
	t.Helper()
	began := time.Now()
	ctx := within(t, time.Minute)
	for range n.Changes(ctx) {
		left := false
		for _, m := range n.View().Members {
			for _, pid := range pids {
				left = left || m.PID == pid
			}
		}
		if !left {
			return time.Since(began)
		}
	}
	t.Fatalf("%v never left the view of %s", pids, n.PID())
	return 0
}

// vanish is crash, and the server has seen it: what is sent to n from now on is for nobody.
func vanish(n *fabric.Node, l *natstest.Link) {
	crash(n, l)
	synctest.Wait()
}

// A member that nobody can send to is out of the view a quarter of a second after
// somebody has tried, whoever coordinates; everybody sees why.
func TestUnreachableMemberFails(t *testing.T) {
	for _, sender := range []string{"coordinator", "another"} {
		t.Run(sender, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				a := join(t, s, "a")
				b := join(t, s, "b")
				victim, link := joinLink(t, s, "v")
				await(t, a, "a", "b", "v")
				await(t, b, "a", "b", "v")
				time.Sleep(10 * time.Second) // the view is quiet
				from := map[string]*fabric.Node{"coordinator": a, "another": b}[sender]
				watched := map[fabric.PID]func() []string{"a": changesOf(t, a, "v"), "b": changesOf(t, b, "v")}
				vanish(victim, link)
				if err := from.Send(t.Context(), "v", nil); err != nil {
					t.Fatal(err)
				}
				if took := goneAfter(t, b, "v"); took > 300*time.Millisecond {
					t.Errorf("failed %v after the message to it, want at most 300ms", took)
				}
				time.Sleep(3 * ttl)
				for pid, changes := range watched {
					sees(t, "seen by "+string(pid), changes(), "suspect", "fail unreachable")
				}
				leave(t, b)
				leave(t, a)
			})
		})
	}
}

// A member that only was away for a moment is suspected, and stays. One that is away
// for longer is out of the view and back in it with the same incarnation; then its
// lease alone counts for a while.
func TestReconnectingMemberIsAlive(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		b, link := joinLink(t, s, "b")
		await(t, a, "a", "b")
		time.Sleep(10 * time.Second)
		inc := b.Incarnation()
		away := func(d time.Duration) []string {
			changes := changesOf(t, a, "b")
			link.Cut()
			link.Kill()
			time.Sleep(20 * time.Millisecond)
			if err := a.Send(t.Context(), "b", nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(d)
			link.Heal()
			time.Sleep(3 * time.Second)
			return changes()
		}
		sees(t, "away for 100ms", away(100*time.Millisecond), "suspect", "alive")
		sees(t, "away for 1s", away(time.Second), "suspect", "fail unreachable", "join")
		sees(t, "away again", away(time.Second))
		if b.Incarnation() != inc {
			t.Errorf("incarnation %d, want still %d", b.Incarnation(), inc)
		}
		leave(t, b)
		leave(t, a)
	})
}

// When many vanish at once it is not their fault: the lease decides.
func TestBrakeOnEvidence(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		var victims []*fabric.Node
		var links []*natstest.Link
		var pids []fabric.PID
		for i := range 4 {
			v, l := joinLink(t, s, fmt.Sprint("v", i))
			victims, links, pids = append(victims, v), append(links, l), append(pids, v.PID())
		}
		await(t, a, append([]fabric.PID{"a"}, pids...)...)
		time.Sleep(10 * time.Second)
		for i := range victims {
			vanish(victims[i], links[i])
			if err := a.Send(t.Context(), pids[i], nil); err != nil {
				t.Fatal(err)
			}
		}
		if took := goneAfter(t, a, pids...); took < ttl*6/10 {
			t.Errorf("4 of 5 were gone after %v, before their leases", took)
		}
		leave(t, a)
	})
}

// Evidence ends no lease: the claim of a member that is held to have failed stays
// until then. And with LeaseOnly it does nothing at all.
func TestEvidenceEndsNoLease(t *testing.T) {
	for _, leaseOnly := range []bool{false, true} {
		t.Run(fmt.Sprint("leaseOnly ", leaseOnly), func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				tune := func(c *fabric.Config) { c.LeaseOnly = leaseOnly }
				a := join(t, s, "a", tune)
				v, link := joinLink(t, s, "v", tune)
				await(t, a, "a", "v")
				time.Sleep(10 * time.Second)
				vanish(v, link)
				began := time.Now()
				if err := a.Send(t.Context(), "v", nil); err != nil {
					t.Fatal(err)
				}
				if took := goneAfter(t, a, "v"); (took < time.Second) == leaseOnly {
					t.Errorf("gone after %v", took)
				}
				again := join(t, s, "v", tune) // has to wait for the lease
				if took := time.Since(began); took < ttl*6/10 {
					t.Errorf("the PID was taken again after %v, before the lease had run out", took)
				}
				leave(t, again)
				leave(t, a)
			})
		})
	}
}

// The next coordinator goes on from what the one before held to have failed.
func TestEvidenceSurvivesTheCoordinator(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		long := func(c *fabric.Config) { c.Lease = 30 * time.Second }
		a, b := join(t, s, "a", long), join(t, s, "b", long)
		v, link := joinLink(t, s, "v", long)
		await(t, b, "a", "b", "v")
		time.Sleep(time.Minute)
		changes := changesOf(t, b, "v")
		vanish(v, link)
		if err := b.Send(t.Context(), "v", nil); err != nil {
			t.Fatal(err)
		}
		goneAfter(t, b, "v")
		leave(t, a) // coordinated
		time.Sleep(2 * time.Minute)
		sees(t, "seen by the next coordinator", changes(), "suspect", "fail unreachable")
		leave(t, b)
	})
}

// What is seen while the coordinator itself has just connected again counts for nothing:
// others may not have, yet.
func TestNoEvidenceAfterAReconnect(t *testing.T) {
	for _, pause := range []time.Duration{time.Second, 4 * time.Second} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			a, coordinator := joinLink(t, s, "a")
			v, link := joinLink(t, s, "v")
			await(t, a, "a", "v")
			time.Sleep(10 * time.Second)
			back := make(chan struct{})
			go func() {
				defer close(back)
				for e := range a.Events(within(t, time.Minute)) {
					if e.Kind == fabric.Reconnected {
						return
					}
				}
			}()
			synctest.Wait()
			coordinator.Cut()
			coordinator.Kill()
			time.Sleep(100 * time.Millisecond)
			coordinator.Heal()
			<-back
			time.Sleep(pause)
			vanish(v, link)
			if err := a.Send(t.Context(), "v", nil); err != nil {
				t.Fatal(err)
			}
			if took := goneAfter(t, a, "v"); (took < time.Second) == (pause < 2*time.Second) {
				t.Errorf("%v after the connection was back, v is gone after %v", pause, took)
			}
			leave(t, a)
		})
	}
}

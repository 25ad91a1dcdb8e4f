package fabric_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// options dial s over a link that can be cut.
func options(l *natstest.Link) []nats.Option {
	return append(natstest.FastOptions(), nats.InProcessServer(l))
}

func logger(t *testing.T, pid string) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", pid)
}

func join(t *testing.T, s *natstest.Server, pid string, tune ...func(*fabric.Config)) *fabric.Node {
	t.Helper()
	n, _ := joinLink(t, s, pid, tune...)
	return n
}

func joinLink(t *testing.T, s *natstest.Server, pid string, tune ...func(*fabric.Config)) (*fabric.Node, *natstest.Link) {
	t.Helper()
	l := s.Link()
	cfg := fabric.Config{Cluster: "c", PID: fabric.PID(pid), NATS: options(l), Logger: logger(t, pid)}
	for _, f := range tune {
		f(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n, err := fabric.Join(ctx, cfg)
	if err != nil {
		t.Fatalf("join as %s: %v", pid, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		if err := n.Leave(ctx); err != nil {
			t.Logf("leave %s: %v", pid, err) // a link that is still cut
		}
	})
	return n, l
}

// await waits until n's view has exactly the PIDs.
func await(t *testing.T, n *fabric.Node, pids ...fabric.PID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range n.Changes(ctx) {
		if same(n.View(), pids) {
			return
		}
	}
	t.Fatalf("view of %s is %v, want %v", n.PID(), n.View(), pids)
}

func same(v fabric.View, pids []fabric.PID) bool {
	if len(v.Members) != len(pids) {
		return false
	}
	for i, m := range v.Members {
		if m.PID != pids[i] {
			return false
		}
	}
	return true
}

func TestMembersSeeEachOther(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a", func(c *fabric.Config) { c.Meta = map[string]string{"zone": "1"} })
		b := join(t, s, "b")
		await(t, a, "a", "b")
		await(t, b, "a", "b")
		if got := b.View().Members[0].Meta["zone"]; got != "1" {
			t.Errorf("a's zone as b sees it = %q, want 1", got)
		}
		if a.View().Epoch != b.View().Epoch {
			t.Errorf("epochs %d and %d, want the same", a.View().Epoch, b.View().Epoch)
		}
		if err := a.Send(t.Context(), "b", []byte("hello")); err != nil {
			t.Fatal(err)
		}
		m, err := b.Receive(t.Context())
		if err != nil || m.From != "a" || string(m.Data) != "hello" {
			t.Errorf("Receive = %+v, %v, want hello from a", m, err)
		}
	})
}

func TestLeaveIsSeenAtOnceAndCrashAfterTheLease(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		b := join(t, s, "b")
		c, link := joinLink(t, s, "c")
		await(t, a, "a", "b", "c")
		kinds := make(chan fabric.Change, 100)
		go func() {
			for ch, err := range a.Changes(t.Context()) {
				if err != nil {
					break
				}
				kinds <- ch
			}
			close(kinds)
		}()
		for range 4 {
			<-kinds // three joins and the end of them
		}
		began := time.Now()
		if err := b.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ch := <-kinds; ch.Kind != fabric.Left || ch.Member.PID != "b" || time.Since(began) > 100*time.Millisecond {
			t.Errorf("after the leave: %v of %s, %v late", ch.Kind, ch.Member.PID, time.Since(began))
		}
		link.Cut()
		began = time.Now()
		ch := <-kinds
		if took := time.Since(began); ch.Kind != fabric.Failed || ch.Member.PID != "c" || took > 5500*time.Millisecond {
			t.Errorf("after the crash: %v of %s, after %v", ch.Kind, ch.Member.PID, took)
		}
		link.Heal()
		if ch := <-kinds; ch.Kind != fabric.Joined || ch.Member.PID != "c" || ch.Member.Incarnation == 0 {
			t.Errorf("after the return: %v of %s", ch.Kind, ch.Member.PID)
		}
		await(t, c, "a", "c")
		if err := a.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCoordinatorCrash(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		_, la := joinLink(t, s, "a") // the first one coordinates
		b, lb := joinLink(t, s, "b")
		c := join(t, s, "c")
		await(t, b, "a", "b", "c")
		la.Cut()
		lb.Cut()
		began := time.Now()
		await(t, c, "c")
		if took := time.Since(began); took > 11100*time.Millisecond {
			t.Errorf("coordinator and another seen as failed after %v, want 2.02 leases + 1 s", took)
		}
	})
}

func TestPIDInUse(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		join(t, s, "a")
		_, err := fabric.Join(t.Context(), fabric.Config{Cluster: "c", PID: "a", NATS: options(s.Link())})
		e, ok := errors.AsType[*fabric.PIDInUseError](err)
		if !ok || e.PID != "a" || e.Host == "" || !errors.Is(err, fabric.ErrPIDInUse) {
			t.Errorf("Join = %v, want a *PIDInUseError", err)
		}
	})
}

func TestLostLeaseRejoins(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, link := joinLink(t, s, "a")
		b := join(t, s, "b")
		await(t, b, "a", "b")
		inc := a.Incarnation()
		events := make(chan fabric.Event, 10)
		go func() {
			for e, err := range a.Events(t.Context()) {
				if err != nil {
					break
				}
				events <- e
			}
			close(events)
		}()
		link.Cut()
		await(t, b, "b")
		link.Heal()
		var kinds []fabric.EventKind
		for e := range events {
			kinds = append(kinds, e.Kind)
			if e.Kind == fabric.Rejoined {
				if e.Incarnation <= inc {
					t.Errorf("rejoined as incarnation %d, was %d", e.Incarnation, inc)
				}
				break
			}
		}
		t.Log(kinds)
		await(t, b, "a", "b")
		await(t, a, "a", "b")
		a.Leave(t.Context())
		b.Leave(t.Context())
	})
}

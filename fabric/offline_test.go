package fabric

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// logHook is a log whose warnings call it, in the goroutine that warns.
type logHook func()

func (f logHook) Enabled(_ context.Context, l slog.Level) bool { return l == slog.LevelWarn }
func (f logHook) Handle(context.Context, slog.Record) error    { f(); return nil }
func (f logHook) WithAttrs([]slog.Attr) slog.Handler           { return f }
func (f logHook) WithGroup(string) slog.Handler                { return f }

// startLinked is startNode on a link that can be cut. Nothing tells the node of a new
// connection.
func startLinked(t *testing.T, s *natstest.Server, pid PID, mod func(*courierConfig)) (*Node, *natstest.Link) {
	t.Helper()
	l := s.Link()
	nc, err := nats.Connect("", append(natstest.FastOptions(), nats.InProcessServer(l),
		nats.ReconnectBufSize(-1), nats.MaxReconnects(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return startNode(t, nc, pid, nil, mod), l
}

// connected waits until the node's connection is there, or is not.
func connected(n *Node, want bool) {
	for n.courier.nc.IsConnected() != want {
		time.Sleep(time.Millisecond) // in fake time
	}
}

// TestOfflineOrder: what is sent while a batch finds the connection broken, and when it is
// back before the batch is through, comes behind that.
func TestOfflineOrder(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprint("back=", back), func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				hook := func() {}
				a, l := startLinked(t, s, "a", func(c *courierConfig) {
					c.offline.TTL, c.logger = time.Minute, slog.New(logHook(func() { hook() }))
				})
				b := startNode(t, s.Connect(), "b", nil, nil)
				send := func(id uint64, ttl time.Duration) {
					t.Helper()
					// A header has each be a parcel of its own.
					m := Message{To: "b", ID: id, TTL: ttl, Header: nats.Header{"K": {"v"}}}
					if err := a.SendMsg(t.Context(), &m); err != nil {
						t.Errorf("message %d: %v", id, err)
					}
				}
				g := &a.courier.batcher
				g.mu.Lock()
				g.busy = true // it gathers
				g.mu.Unlock()
				send(1, 0)
				// That this fails is logged between the first and the second.
				if err := g.post(a.courier.answersTo("b"), &outgoing{kind: kindAnswer, id: 1, secret: random(secretLen)}); err != nil {
					t.Fatal(err)
				}
				send(2, 0)
				send(3, 0)
				l.Cut()
				l.Kill()
				connected(a, false)
				want := []uint64{1, 2, 3, 4, 6}
				hook = func() {
					hook = func() {}
					send(4, 0)
					if back {
						want = []uint64{1, 2, 3, 4, 5, 6}
						l.Heal()
						connected(a, true)
						send(5, -1)
					}
				}
				g.wake <- struct{}{}
				for !g.idle() {
					time.Sleep(time.Millisecond) // in fake time
				}
				l.Heal()
				connected(a, true)
				send(6, -1) // before the node is told
				a.courier.reconnected()
				for _, id := range want {
					if m := receive(t, b); m.ID != id {
						t.Errorf("received %d, want %d", m.ID, id)
					}
				}
			})
		})
	}
}

// TestOfflineControl: the time that a message may wait does not begin anew when some
// connection is back that is not the one it waits for.
func TestOfflineControl(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		began := time.Now()
		var lapsed []time.Duration
		a, l := startLinked(t, s, "a", func(c *courierConfig) {
			c.offline.TTL = 10 * time.Second
			c.onUndeliverable = func(u Undeliverable) {
				if !errors.Is(u, ErrDisconnected) {
					t.Errorf("told %v", u)
				}
				lapsed = append(lapsed, time.Since(began).Round(time.Second))
			}
		})
		l.Cut()
		l.Kill()
		connected(a, false)
		began = time.Now()
		if err := a.Send(t.Context(), "b", nil); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			time.Sleep(4 * time.Second)
			a.courier.reconnected() // the control connection is
		}
		synctest.Wait()
		if fmt.Sprint(lapsed) != "[10s]" {
			t.Errorf("lapsed after %v, want 10s", lapsed)
		}
	})
}

// TestFlushControl: a Flush is not ended, nor its answer doubted, when some connection is
// back that is not the one it waits for.
func TestFlushControl(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, l := startLinked(t, s, "a", nil)
		b := startNode(t, s.Connect(), "b", nil, nil)
		l.CutReplies()
		if err := a.Send(t.Context(), "b", nil); err != nil {
			t.Fatal(err)
		}
		flushed := make(chan error, 1)
		go func() { flushed <- a.Flush(t.Context()) }()
		time.Sleep(time.Second)
		a.courier.reconnected() // the control connection is
		time.Sleep(time.Second)
		l.Heal()
		if err := <-flushed; err != nil {
			t.Errorf("Flush: %v", err)
		}
		receive(t, b)
	})
}

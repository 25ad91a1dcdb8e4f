package fabric

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// While the dispatcher does not run, the reader is held back before nats.go could
// drop anything, and goes on when it runs again.
func TestGateHoldsTheReaderBack(t *testing.T) {
	const count = 60_000 // more than the channel holds, fewer than the inbox
	s := startServer(t)
	g := new(gate)
	conn := connect(t, s, func(o *nats.Options) error { g.install(o); return nil })
	b := startNode(t, conn, "b", nil, func(c *courierConfig) { c.gate = g })
	a := startNode(t, connect(t, s), "a", nil, func(c *courierConfig) { c.noBatch = true })
	ctx := deadline(t)
	q := b.courier.inbox
	q.mu.Lock() // the dispatcher stops at its next batch
	for range count {
		if err := a.Send(ctx, "b", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Flush(ctx); err != nil { // the server has them all
		t.Fatal(err)
	}
	for !g.shut.Load() && b.courier.channelDrops() == 0 { // until the reader has come to its limit
		if ctx.Err() != nil {
			t.Fatal("the gate is still open")
		}
	}
	q.mu.Unlock()
	for i := range count {
		m := receive(t, b)
		if m.ID != uint64(i+1) {
			t.Fatalf("message %d came where %d was due", m.ID, i+1)
		}
	}
	if n := b.courier.channelDrops(); n != 0 {
		t.Errorf("nats.go dropped %d", n)
	}
}

// Closing the connection ends a reader that is held back.
func TestGateOpensOnClose(t *testing.T) {
	s := startServer(t)
	g := new(gate)
	conn := connect(t, s, func(o *nats.Options) error { g.install(o); return nil })
	ch := make(chan *nats.Msg, gateCap)
	for range gateHigh + 1 {
		ch <- nil
	}
	g.ch.Store(&ch)
	if err := conn.Publish("x", nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { conn.Close(); close(done) }()
	select {
	case <-done:
	case <-deadline(t).Done():
		t.Fatal("Close hangs")
	}
}

// A connection on which there is nothing to say is kept, and given up when the server does
// not answer any more.
func TestIdleConnectionIsAsked(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		wire := s.Link()
		lost := make(chan error, 1)
		cfg := Config{Cluster: "c", PID: "a", Lease: 5 * time.Second, NATS: []nats.Option{
			nats.InProcessServer(wire), nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { lost <- err }),
		}}
		cfg, err := cfg.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		l, err := dial(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		select {
		case err := <-lost:
			t.Fatalf("quiet, and lost: %v", err)
		case <-time.After(time.Minute):
		}
		began := time.Now()
		wire.Cut()
		<-lost
		// At worst it has just been answered: 7/16 and 4/16 of a lease.
		if took := time.Since(began); took > 3500*time.Millisecond {
			t.Errorf("found after %v", took)
		}
	})
}

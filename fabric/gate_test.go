package fabric

import (
	"testing"

	"github.com/nats-io/nats.go"
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

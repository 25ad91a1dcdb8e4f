package fabric

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
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

// What could not be sent on a connection that is given up does not come later.
func TestGivenUpConnectionSendsNoMore(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c, err := (&gate{ping: 20 * time.Millisecond}).wrap(raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := raw.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	sent := 0
	for b := make([]byte, 1<<20); err == nil; { // until neither side's system takes more
		var n int
		n, err = raw.Write(b)
		sent += n
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Read = %v of a server that is silent", err)
	}
	c.Close()
	if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := io.Copy(io.Discard, server)
	if !errors.Is(err, syscall.ECONNRESET) || got >= int64(sent) {
		t.Errorf("the server got %d of %d bytes, and then %v; want fewer, and a reset", got, sent, err)
	}
}

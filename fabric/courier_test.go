package fabric

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// startServer starts a NATS server with JetStream on a free port of the loopback.
func startServer(t testing.TB) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true,
		JetStream: true, StoreDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not accept connections")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

func connect(t testing.TB, s *server.Server, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), append([]nats.Option{nats.Timeout(20 * time.Second)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// view is a fake of what the roster knows.
type view struct {
	mu    sync.Mutex // guards here
	here  map[PID]bool
	reads map[PID]int

	changes chan struct{} // closed by change
	lives   map[PID]uint64
}

// members is what a courier asks for the view; every incarnation is 1, or as lives has it.
func (v *view) members() (map[PID]uint64, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.changes == nil {
		v.changes = make(chan struct{})
	}
	all := make(map[PID]uint64)
	for pid := range v.here {
		all[pid] = max(v.lives[pid], 1)
	}
	return all, v.changes
}

// change makes another view.
func (v *view) change(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
	if v.changes != nil {
		close(v.changes)
		v.changes = nil
	}
}

func (v *view) known(pid PID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.here[pid]
}

// others returns what a courier of pid asks for the other members.
func (v *view) others(pid PID) func() []PID {
	return func() []PID {
		v.mu.Lock()
		defer v.mu.Unlock()
		return slices.DeleteFunc(slices.Sorted(maps.Keys(v.here)), func(p PID) bool { return p == pid })
	}
}

func (v *view) gone(_ context.Context, pid PID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reads[pid]++
	return pid != "joining" // claimed, but not yet in the view
}

// startNode starts the messaging of a node on a connection. view may be nil:
// nobody is known.
func startNode(t testing.TB, nc *nats.Conn, pid PID, v *view, mod func(*courierConfig)) *Node {
	t.Helper()
	if v == nil {
		v = &view{reads: make(map[PID]int)}
	}
	cfg := courierConfig{
		nc: nc, subjects: newSubjects("c1", "test", pid), pid: pid,
		logger: slog.New(slog.DiscardHandler), known: v.known, lifeOf: func(PID) uint64 { return 0 }, gone: v.gone, others: v.others(pid),
		members: v.members, refused: func(string) error { return nil },
	}
	if mod != nil {
		mod(&cfg)
	}
	c, err := newCourier(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return &Node{courier: c}
}

// pair starts two nodes, a and b, on connections of their own.
func pair(t testing.TB, s *server.Server) (a, b *Node) {
	t.Helper()
	return startNode(t, connect(t, s), "a", nil, nil), startNode(t, connect(t, s), "b", nil, nil)
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func receive(t testing.TB, n *Node) *Message {
	t.Helper()
	m, err := n.Receive(deadline(t))
	if err != nil {
		t.Fatalf("Receive: %v", err)
	}
	return m
}

func TestSignals(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	got := make(chan string, 10)
	for _, n := range []*Node{a, b} {
		stop, err := n.courier.onSignal("hb", func(from PID, data []byte) {
			got <- string(n.courier.cfg.pid) + "<" + string(from) + ":" + string(data)
		})
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		if err := n.courier.nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	raw := connect(t, s)
	ctx := deadline(t)
	for _, m := range []*nats.Msg{
		{Subject: "fab.c1.test.y.hb.a"},                                           // no tag
		{Subject: "fab.c1.test.y.hb.a", Reply: "fab.c1.test.r.z._.y012345.1"},     // another's tag
		{Subject: "fab.c1.test.y.hb.z", Reply: "fab.c1.test.r.z._.s012345.1"},     // wrong kind
		{Subject: "fab.c1.test.y.hb.ext", Reply: "fab.c1.test.r.ext._.y012345.1"}, // from outside
	} {
		if err := raw.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := a.courier.signal("hb", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := a.courier.signal("other", nil); err != nil {
		t.Fatal(err)
	}
	if err := b.courier.signal("hb", []byte("2")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case g := <-got:
			if g != "b<a:1" && g != "a<b:2" {
				t.Errorf("signal %q, want only the other's", g)
			}
		case <-ctx.Done():
			t.Fatal("a signal did not arrive")
		}
	}
	if na, nb := a.Stats().Invalid, b.Stats().Invalid; na != 4 || nb != 4 {
		t.Errorf("Invalid = %d and %d, want 4 each", na, nb)
	}
}

// TestClose ends everything that waits and leaves no goroutine behind.
func TestClose(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	if _, err := a.courier.onSignal("hb", func(PID, []byte) {}); err != nil {
		t.Fatal(err)
	}
	ctx := deadline(t)
	errs := make(chan error)
	waits := []func() error{
		func() error { _, err := a.Receive(ctx); return err },
		func() error { return a.Handle(ctx, 3, echo) },
		func() error { _, err := a.Request(ctx, "b", nil); return err }, // b does not answer
		func() error {
			for _, err := range a.Messages(ctx) {
				return err
			}
			return nil
		},
	}
	for _, wait := range waits {
		go func() { errs <- wait() }()
	}
	receive(t, b) // the request is under way
	a.courier.close()
	for range waits {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("ended with %v, want ErrClosed", err)
		}
	}
	a.courier.close() // again
	for name, err := range map[string]error{
		"Send": a.Send(ctx, "b", nil), "Flush": a.Flush(ctx), "signal": a.courier.signal("hb", nil),
		"Handle": a.Handle(ctx, 1, echo),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after close = %v, want ErrClosed", name, err)
		}
	}
	if _, err := a.courier.onSignal("hb", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("onSignal after close = %v, want ErrClosed", err)
	}
	b.courier.close()
	running := messaging()
	for end := time.Now().Add(5 * time.Second); len(running) > 0 && time.Now().Before(end); running = messaging() {
		time.Sleep(time.Millisecond) // one that has said it is through may have a step to go
	}
	for _, g := range running {
		t.Errorf("still running:\n%s", g)
	}
}

// messaging returns the stacks of the goroutines that couriers have started.
func messaging() (running [][]byte) {
	stacks := make([]byte, 1<<20)
	for g := range bytes.SplitSeq(stacks[:runtime.Stack(stacks, true)], []byte("\n\n")) {
		if bytes.Contains(g, []byte("fabric.(*courier)")) || bytes.Contains(g, []byte("fabric.(*clerk)")) {
			running = append(running, g)
		}
	}
	return running
}

// TestCloseKeepsInbox: what was accepted before the close can be received.
func TestCloseKeepsInbox(t *testing.T) {
	a, b := pair(t, startServer(t))
	ctx := deadline(t)
	for range 3 {
		if err := a.Send(ctx, "b", nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Send(ctx, "b", []byte("last")); err != nil {
		t.Fatal(err)
	}
	if err := a.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.courier.nc.Flush(); err != nil { // they are on this side
		t.Fatal(err)
	}
	b.courier.close()
	for range 4 {
		receive(t, b)
	}
	if _, err := b.Receive(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("Receive = %v, want ErrClosed", err)
	}
}

func TestDisconnected(t *testing.T) {
	s := startServer(t)
	down := make(chan struct{})
	nc := connect(t, s, nats.ReconnectBufSize(-1), nats.MaxReconnects(-1),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { close(down) }))
	a := startNode(t, nc, "a", nil, nil)
	// Its reconnect buffer takes what is published, and keeps it.
	borrowed := startNode(t, connect(t, s, nats.MaxReconnects(-1)), "c", nil, nil)
	s.Shutdown()
	s.WaitForShutdown()
	ctx := deadline(t)
	<-down
	if err := a.Send(ctx, "b", nil); !errors.Is(err, ErrDisconnected) {
		t.Errorf("Send = %v, want ErrDisconnected", err)
	}
	if _, err := a.Request(ctx, "b", nil); !errors.Is(err, ErrDisconnected) {
		t.Errorf("Request = %v, want ErrDisconnected", err)
	}
	if err := a.Flush(ctx); !errors.Is(err, ErrDisconnected) {
		t.Errorf("Flush = %v, want ErrDisconnected", err)
	}
	if err := a.Send(ctx, "a", nil); err != nil {
		t.Errorf("Send to self = %v, want nil: it needs no server", err)
	}
	nc.Close()
	if err := a.Send(ctx, "b", nil); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrConnClosed) {
		t.Errorf("Send on a closed connection = %v, want ErrClosed and ErrConnClosed", err)
	}
	if _, err := a.Request(ctx, "b", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Request on a closed connection = %v, want ErrClosed", err)
	}
	a.courier.close() // ends although the connection is gone
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := borrowed.Flush(short); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrDisconnected) {
		t.Errorf("Flush = %v, want DeadlineExceeded", err)
	}
	pending := make(chan error, 1)
	go func() { pending <- borrowed.Flush(ctx) }()
	borrowed.courier.close()
	if err := <-pending; !errors.Is(err, ErrClosed) {
		t.Errorf("Flush = %v, want ErrClosed", err)
	}
}

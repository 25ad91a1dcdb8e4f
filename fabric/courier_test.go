package fabric

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
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
	nc, err := nats.Connect(s.ClientURL(), opts...)
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
}

func (v *view) known(pid PID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.here[pid]
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
		logger: slog.New(slog.DiscardHandler), known: v.known, gone: v.gone,
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

func TestSendAndHeader(t *testing.T) {
	a, b := pair(t, startServer(t))
	ctx := deadline(t)
	out := &Message{From: "nonsense", To: "b", ID: 7, Header: nats.Header{"K": {"v", "w"}}, Data: []byte("x")}
	if err := a.SendMsg(ctx, out); err != nil {
		t.Fatal(err)
	}
	if out.From != "nonsense" || out.To != "b" || out.ID != 7 || len(out.Header) != 1 {
		t.Errorf("SendMsg changed its argument: %+v", out)
	}
	m := receive(t, b)
	if m.From != "a" || m.To != "b" || m.ID != 7 || m.IsRequest() || string(m.Data) != "x" {
		t.Errorf("received %+v", m)
	}
	if got := m.Header.Values("K"); len(got) != 2 || got[0] != "v" || got[1] != "w" {
		t.Errorf("header = %q, want v, w", got)
	}
	if err := m.Reply(ctx, nil); !errors.Is(err, ErrNotRequest) {
		t.Errorf("Reply to a send = %v, want ErrNotRequest", err)
	}
	for want := uint64(1); want <= 3; want++ { // ids rise, an empty message is one
		if err := a.Send(ctx, "b", nil); err != nil {
			t.Fatal(err)
		}
		if m := receive(t, b); m.ID != want || len(m.Data) != 0 {
			t.Errorf("received ID %d and %d bytes, want %d and 0", m.ID, len(m.Data), want)
		}
	}
	if err := a.Broadcast(ctx, []byte("all")); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, b); m.From != "a" || m.To != Everyone || m.ID != 4 {
		t.Errorf("received %+v, want a broadcast with ID 4", m)
	}
	if err := a.Flush(ctx); err != nil {
		t.Errorf("Flush = %v", err)
	}
	if s := a.Stats(); s != (Stats{Sent: 5}) {
		t.Errorf("sender's stats = %+v, want 5 sent and nothing else: no broadcast of its own", s)
	}
	if s := b.Stats(); s != (Stats{Received: 5}) {
		t.Errorf("receiver's stats = %+v, want 5 received", s)
	}
}

func TestSendRefuses(t *testing.T) {
	s := startServer(t)
	a, _ := pair(t, s)
	ctx := deadline(t)
	for _, to := range []PID{"", "a.b", "*x", ">", "ext", "_", PID(strings.Repeat("x", 65))} {
		if _, ok := errors.AsType[*NameError](a.Send(ctx, to, nil)); !ok {
			t.Errorf("Send to %q: want a NameError", to)
		}
		if _, err := a.Request(ctx, to, nil); err == nil {
			t.Errorf("Request to %q succeeded", to)
		} else if _, ok := errors.AsType[*NameError](err); !ok {
			t.Errorf("Request to %q = %v, want a NameError", to, err)
		}
	}
	if _, err := a.Request(ctx, Everyone, nil); err == nil {
		t.Error("Request to Everyone succeeded")
	}
	for _, key := range []string{"", "Nats-Msg-Id", "nats-x", "FAB-y", "status", "Description", "a:b", "a b", "a\r\nb", "é"} {
		err := a.SendMsg(ctx, &Message{To: "b", Header: nats.Header{key: {"v"}}})
		if _, ok := errors.AsType[*NameError](err); !ok {
			t.Errorf("header key %q: %v, want a NameError", key, err)
		}
	}
	big := make([]byte, a.courier.nc.MaxPayload()+1)
	for name, err := range map[string]error{
		"Send":        a.Send(ctx, "b", big),
		"Send self":   a.Send(ctx, "a", big),
		"Broadcast":   a.Broadcast(ctx, big),
		"with header": a.SendMsg(ctx, &Message{To: "b", Header: nats.Header{"K": {"v"}}, Data: big[:len(big)-1]}),
	} {
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s of too much = %v, want ErrTooLarge", name, err)
		}
	}
	for _, to := range []PID{"a", "b"} {
		if _, err := a.Request(ctx, to, big); !errors.Is(err, ErrTooLarge) {
			t.Errorf("Request to %s of too much = %v, want ErrTooLarge", to, err)
		}
	}
	if err := a.Send(ctx, "b", big[1:]); err != nil {
		t.Errorf("Send of max_payload = %v", err)
	}
	over, cancel := context.WithCancelCause(ctx)
	cause := errors.New("enough")
	cancel(cause)
	if err := a.Send(over, "b", nil); !errors.Is(err, cause) {
		t.Errorf("Send under an ended ctx = %v, want its cause", err)
	}
}

// TestOrder interleaves both ways of sending: 100 000 messages, all once, in order.
func TestOrder(t *testing.T) {
	const total = 100_000
	a, b := pair(t, startServer(t))
	ctx := deadline(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for i := range total {
			to := PID("b")
			if i%3 == 0 {
				to = Everyone
			}
			if err := a.Send(ctx, to, nil); err != nil {
				t.Errorf("Send: %v", err)
			}
			if i%10_000 == 9_999 { // stay within the receiver's inbox
				if err := a.Flush(ctx); err != nil {
					t.Errorf("Flush: %v", err)
				}
			}
		}
	})
	want := uint64(1)
	for m, err := range b.Messages(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if m.ID != want {
			t.Fatalf("message %d came where %d was due", m.ID, want)
		}
		if want++; want > total {
			break
		}
	}
	if s := b.Stats(); s != (Stats{Received: total}) {
		t.Errorf("stats = %+v, want %d received and nothing else", s, total)
	}
}

func TestFlushReports(t *testing.T) {
	s := startServer(t)
	v := &view{here: map[PID]bool{"slow": true}, reads: make(map[PID]int)}
	var mu sync.Mutex
	var told []Undeliverable
	a := startNode(t, connect(t, s), "a", v, func(cfg *courierConfig) {
		cfg.onUndeliverable = func(u Undeliverable) { mu.Lock(); told = append(told, u); mu.Unlock() }
	})
	startNode(t, connect(t, s), "b", nil, nil)
	ctx := deadline(t)
	want := map[PID]error{"nobody": ErrNoPeer, "slow": ErrUnreachable, "joining": ErrUnreachable}
	for _, to := range []PID{"nobody", "b", "slow", "joining"} {
		if err := a.Send(ctx, to, nil); err != nil {
			t.Fatal(err)
		}
	}
	err := a.Flush(ctx)
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 3 {
		t.Fatalf("Flush = %v, want 3 joined errors", err)
	}
	for i, e := range joined.Unwrap() {
		u, ok := e.(Undeliverable)
		if !ok || !errors.Is(u, want[u.To]) || u.ID == 0 || u != told[i] {
			t.Errorf("error %d = %#v, want an Undeliverable, as OnUndeliverable was told", i, e)
		}
		if !strings.Contains(e.Error(), string(u.To)) || !strings.Contains(e.Error(), fmt.Sprint(u.ID)) {
			t.Errorf("%q does not name the receiver and the message", e)
		}
	}
	if err := a.Flush(ctx); err != nil {
		t.Errorf("second Flush = %v, want nil", err)
	}
	if n := a.Stats().Undeliverable; n != 3 {
		t.Errorf("Undeliverable = %d, want 3", n)
	}
}

// TestFlushBounds sends more into the void than is remembered one by one.
func TestFlushBounds(t *testing.T) {
	const total = 10_000
	v := &view{reads: make(map[PID]int)}
	a := startNode(t, connect(t, startServer(t)), "a", v, nil)
	ctx := deadline(t)
	for range total {
		if err := a.Send(ctx, "nobody", nil); err != nil {
			t.Fatal(err)
		}
	}
	err := a.Flush(ctx)
	joined := err.(interface{ Unwrap() []error }).Unwrap()
	if len(joined) != maxKept+1 || !errors.Is(joined[maxKept], ErrNoPeer) ||
		!strings.Contains(joined[maxKept].Error(), fmt.Sprint(total-maxKept)) {
		t.Errorf("Flush joined %d errors, the last %v", len(joined), joined[len(joined)-1])
	}
	if n := a.Stats().Undeliverable; n != total {
		t.Errorf("Undeliverable = %d, want %d", n, total)
	}
	if n := v.reads["nobody"]; n > total/10 {
		t.Errorf("the claim was read %d times for one burst", n)
	}
}

func TestSelfSend(t *testing.T) {
	a := startNode(t, connect(t, startServer(t)), "a", nil, nil)
	ctx := deadline(t)
	data, header := []byte("x"), nats.Header{"K": {"v"}}
	if err := a.SendMsg(ctx, &Message{To: "a", Header: header, Data: data}); err != nil {
		t.Fatal(err)
	}
	data[0], header["K"][0] = '!', "!"
	m := receive(t, a)
	if m.From != "a" || m.To != "a" || m.ID != 1 || string(m.Data) != "x" || m.Header.Get("K") != "v" {
		t.Errorf("received %+v, want what was sent", m)
	}
	if n := a.courier.nc.Stats().OutMsgs; n != 0 {
		t.Errorf("%d messages went to the server", n)
	}
	go func() { _ = a.Handle(ctx, 1, echo) }()
	if m, err := a.Request(ctx, "a", []byte("q")); err != nil || string(m.Data) != "q" || m.From != "a" {
		t.Errorf("Request to self = %+v, %v", m, err)
	}
}

func echo(_ context.Context, m *Message) ([]byte, error) { return m.Data, nil }

func TestPassiveAndOff(t *testing.T) {
	s := startServer(t)
	b := startNode(t, connect(t, s), "b", nil, nil)
	go func() { _ = b.Handle(t.Context(), 1, echo) }()
	ctx := deadline(t)
	for name, mod := range map[string]func(*courierConfig){
		"passive": func(cfg *courierConfig) { cfg.passive = true },
		"off":     func(cfg *courierConfig) { cfg.inbox.Off = true },
	} {
		v := &view{here: map[PID]bool{"p": true}, reads: make(map[PID]int)}
		p := startNode(t, connect(t, s), "p", v, mod)
		if m, err := p.Request(ctx, "b", []byte("x")); err != nil || string(m.Data) != "x" {
			t.Errorf("%s: Request = %v, %v", name, m, err)
		}
		if err := p.Broadcast(ctx, nil); err != nil {
			t.Errorf("%s: Broadcast = %v", name, err)
		}
		for _, to := range []PID{"p", "nobody"} {
			if err := p.Send(ctx, to, nil); err != nil {
				t.Errorf("%s: Send = %v", name, err)
			}
		}
		if err := p.Flush(ctx); !errors.Is(err, ErrUnreachable) || !errors.Is(err, ErrNoPeer) {
			t.Errorf("%s: Flush = %v, want self unreachable, and no peer", name, err)
		}
		if _, err := p.Request(ctx, "p", nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: Request to self = %v, want ErrUnreachable", name, err)
		}
		p.courier.close()
	}
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
		{Subject: "fab.c1.test.y.hb.a"},                                                // no tag
		{Subject: "fab.c1.test.y.hb.a", Reply: "fab.c1.test.r.z._.1y01234567.1"},     // another's tag
		{Subject: "fab.c1.test.y.hb.z", Reply: "fab.c1.test.r.z._.1s01234567.1"},     // wrong kind
		{Subject: "fab.c1.test.y.hb.ext", Reply: "fab.c1.test.r.ext._.1y01234567.1"}, // from outside
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
	stacks := make([]byte, 1<<20)
	for g := range bytes.SplitSeq(stacks[:runtime.Stack(stacks, true)], []byte("\n\n")) {
		if bytes.Contains(g, []byte("fabric.(*courier)")) || bytes.Contains(g, []byte("fabric.(*clerk)")) {
			t.Errorf("still running:\n%s", g)
		}
	}
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
	borrowed.courier.close()
}

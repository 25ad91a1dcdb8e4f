package fabric

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// serve has n serve a service until stop is called, which returns what Serve did. It
// returns when the server knows.
func serve(t testing.TB, n *Node, service string, workers int, f handler) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(deadline(t))
	done := make(chan error, 1)
	go func() { done <- n.Serve(ctx, service, workers, f) }()
	subject := n.courier.subj.serviceAll(service)
	for subscribed := false; !subscribed; {
		n.courier.subsMu.Lock()
		for _, sub := range n.courier.subs {
			subscribed = subscribed || sub.Subject == subject
		}
		n.courier.subsMu.Unlock()
		if ctx.Err() != nil {
			t.Fatal("Serve does not subscribe")
		}
		time.Sleep(time.Millisecond)
	}
	if err := n.courier.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

func TestAnycast(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	c := startNode(t, connect(t, s), "c", nil, nil)
	ctx := deadline(t)
	subs := len(b.courier.subs)
	if _, err := a.Anycast(ctx, "mail", nil); !errors.Is(err, ErrNoReceiver) {
		t.Errorf("nobody serves: %v", err)
	}
	var handled atomic.Int64
	who := func(n *Node) handler {
		return func(_ context.Context, m *Message) ([]byte, error) {
			handled.Add(1)
			if m.From != "a" || m.To != n.courier.cfg.pid || !m.IsRequest() {
				t.Errorf("%s got %+v", n.courier.cfg.pid, m)
			}
			if string(m.Data) == "bad" {
				return nil, &RemoteError{Code: "E1", Message: "no"}
			}
			return append([]byte(m.To), m.Data...), nil
		}
	}
	stopB, stopC := serve(t, b, "mail", 2, who(b)), serve(t, c, "mail", 0, who(c))
	serve(t, c, "other", 1, func(context.Context, *Message) ([]byte, error) {
		t.Error("a request to another service")
		return nil, nil
	})
	answered := map[PID]int{}
	for range 200 {
		m, err := a.AnycastMsg(ctx, "mail", &Message{Type: "Q", Data: []byte("x")})
		if err != nil {
			t.Fatal(err)
		}
		if string(m.Data) != string(m.From)+"x" || m.To != "a" {
			t.Fatalf("answer %+v", m)
		}
		answered[m.From]++
	}
	if answered["b"]+answered["c"] != 200 || answered["b"] == 0 || answered["c"] == 0 || handled.Load() != 200 {
		t.Errorf("answered %v, handled %d, want 200 by both", answered, handled.Load())
	}
	_, err := a.Anycast(ctx, "mail", []byte("bad"))
	if e, ok := errors.AsType[*RemoteError](err); !ok || e.Code != "E1" || e.PID != "b" && e.PID != "c" {
		t.Errorf("handler failed: %v", err)
	}
	if err := stopB(); !errors.Is(err, context.Canceled) {
		t.Errorf("Serve = %v, want Canceled", err)
	}
	for range 20 {
		if m, err := a.Anycast(ctx, "mail", nil); err != nil || m.From != "c" {
			t.Fatalf("b has stopped: %+v, %v", m, err)
		}
	}
	if err := stopC(); !errors.Is(err, context.Canceled) {
		t.Errorf("Serve = %v, want Canceled", err)
	}
	if _, err := a.Anycast(ctx, "mail", nil); !errors.Is(err, ErrNoReceiver) {
		t.Errorf("all have stopped: %v", err)
	}
	if b, c := b.Stats().Received, c.Stats().Received; b+c != 221 {
		t.Errorf("Received %d and %d, want 221 together", b, c)
	}
	if n := len(b.courier.subs); n != subs {
		t.Errorf("%d subscriptions are kept, want %d", n, subs)
	}
}

// TestAnycastSelf: a node may serve itself, and what it sends itself has an answer.
func TestAnycastSelf(t *testing.T) {
	a, _ := pair(t, startServer(t))
	serve(t, a, "mail", 1, echo)
	if m, err := a.Anycast(deadline(t), "mail", []byte("x")); err != nil || m.From != "a" || string(m.Data) != "x" {
		t.Errorf("answer %+v, %v", m, err)
	}
}

func TestAnycastErrors(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	for _, name := range []string{"", "a.b", "*"} {
		if _, err := a.Anycast(ctx, name, nil); !isNameError(err) {
			t.Errorf("Anycast(%q) = %v", name, err)
		}
		if err := a.Serve(ctx, name, 1, echo); !isNameError(err) {
			t.Errorf("Serve(%q) = %v", name, err)
		}
	}
	if _, err := a.AnycastMsg(ctx, "mail", &Message{Type: "a b"}); !isNameError(err) {
		t.Errorf("bad type: %v", err)
	}
	passive := startNode(t, connect(t, s), "p", nil, func(c *courierConfig) { c.passive = true })
	if err := passive.Serve(ctx, "mail", 1, echo); !errors.Is(err, ErrPassive) {
		t.Errorf("passive: %v", err)
	}
	serve(t, b, "mail", 1, echo)
	if m, err := passive.Anycast(ctx, "mail", nil); err != nil || m.From != "b" {
		t.Errorf("a passive node asks: %v, %v", m, err)
	}
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, "mail", 3, echo) }()
	for a.courier.services.len() == 0 {
		time.Sleep(time.Millisecond)
	}
	a.courier.close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("Serve = %v, want ErrClosed", err)
	}
	if _, err := a.Anycast(ctx, "mail", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Anycast = %v, want ErrClosed", err)
	}
	if err := a.Serve(ctx, "mail", 1, echo); !errors.Is(err, ErrClosed) {
		t.Errorf("Serve = %v, want ErrClosed", err)
	}
}

func (s *services) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.running)
}

// TestServeFull: who finds the queue full is told.
func TestServeFull(t *testing.T) {
	s := startServer(t)
	a := startNode(t, connect(t, s), "a", nil, nil)
	b := startNode(t, connect(t, s), "b", nil, func(c *courierConfig) { c.inbox.Messages = 2 })
	ctx := deadline(t)
	begun, release := make(chan struct{}, 1), make(chan struct{})
	stop := serve(t, b, "mail", 1, func(context.Context, *Message) ([]byte, error) {
		begun <- struct{}{}
		<-release
		return nil, nil
	})
	errs := make(chan error, 3)
	ask := func() { _, err := a.Anycast(ctx, "mail", nil); errs <- err }
	go ask()
	<-begun
	go ask()
	go ask()
	for received := uint64(0); received < 3 && ctx.Err() == nil; received = b.Stats().Received {
		time.Sleep(time.Millisecond)
	}
	if _, err := a.Anycast(ctx, "mail", nil); !errors.Is(err, ErrInboxFull) {
		t.Errorf("full: %v", err)
	}
	// Two wait: when the service stops, they are told, and the one at work is not.
	done := make(chan error, 1)
	go func() { done <- stop() }()
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrInboxFull) {
			t.Errorf("stopped: %v", err)
		}
	}
	close(release)
	if err := <-errs; err != nil {
		t.Errorf("at work: %v", err)
	}
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve = %v", err)
	}
	if st := b.Stats(); st.Received != 1 || st.Rejected != 3 {
		t.Errorf("%+v, want 1 received and 3 rejected", st)
	}
}

// TestServeStopsUnderLoad: whoever asks while services come and go gets an answer or
// is told; nobody waits in vain.
func TestServeStopsUnderLoad(t *testing.T) {
	s := startServer(t)
	a := startNode(t, connect(t, s), "a", nil, nil)
	b := startNode(t, connect(t, s), "b", nil, nil)
	ctx, cancel := context.WithCancel(deadline(t))
	var answered, refused, nobodys atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, err := a.Anycast(deadline(t), "mail", nil)
				switch {
				case err == nil:
					answered.Add(1)
				case errors.Is(err, ErrInboxFull):
					refused.Add(1)
				case errors.Is(err, ErrNoReceiver):
					nobodys.Add(1)
				default:
					t.Errorf("Anycast = %v", err)
					return
				}
			}
		})
	}
	var handled atomic.Int64
	for range 25 {
		stop := serve(t, b, "mail", 2, func(context.Context, *Message) ([]byte, error) {
			handled.Add(1)
			return nil, nil
		})
		for before := handled.Load(); handled.Load() < before+50 && !t.Failed(); {
			if ctx.Err() != nil { // nobody asks any more
				t.Errorf("%d of 50 requests were handled before the time was up", handled.Load()-before)
			}
			time.Sleep(time.Millisecond)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Serve = %v", err)
		}
	}
	cancel()
	wg.Wait()
	if answered.Load() != handled.Load() || handled.Load() < 1250 {
		t.Errorf("%d handled, %d answered (%d refused, %d without a receiver)", handled.Load(), answered.Load(), refused.Load(), nobodys.Load())
	}
}

// TestServeExternal: a plain NATS client asks a service.
func TestServeExternal(t *testing.T) {
	s := startServer(t)
	b := startNode(t, connect(t, s), "b", nil, nil)
	got := make(chan *Message, 10)
	serve(t, b, "mail", 1, func(_ context.Context, m *Message) ([]byte, error) {
		got <- m
		if len(m.Data) == 0 {
			return nil, errors.New("empty")
		}
		return m.Data, nil
	})
	raw := connect(t, s)
	ctx := deadline(t)
	const subject = "fab.c1.test.q.mail."
	if m, err := raw.RequestWithContext(ctx, subject+"ext", []byte("q")); err != nil || string(m.Data) != "q" {
		t.Errorf("nats request = %v, %v", m, err)
	}
	if m := <-got; m.From != External || m.To != "b" || !m.IsRequest() {
		t.Errorf("handled %+v", m)
	}
	if m, err := raw.RequestWithContext(ctx, subject+"ext", nil); err != nil || m.Header.Get("Nats-Service-Error") != "empty" {
		t.Errorf("nats request = %v, %v", m, err)
	}
	<-got
	if err := raw.PublishRequest(subject+"ext", "$JS.API.STREAM.DELETE.S", []byte("plain")); err != nil {
		t.Fatal(err)
	}
	if m := <-got; m.IsRequest() || string(m.Data) != "plain" {
		t.Errorf("handled %+v", m)
	}
	forged := []nats.Msg{
		{Subject: subject + "a"},
		{Subject: subject + "a", Reply: "_INBOX.x"},
		{Subject: subject + "a", Reply: atR + "victim._" + asks},
		{Subject: subject + "a", Reply: atR + "a.b" + asks},
		{Subject: subject + "a", Reply: atR + "a._.b012345.1"},
		{Subject: subject + "a", Reply: atR + "a._.h012345.1-0123456789"},
		{Subject: subject + "ext", Header: nats.Header{"Nats-Subject": {"x"}}},
	}
	for _, m := range forged {
		if err := raw.PublishMsg(&m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := raw.RequestWithContext(ctx, subject+"ext", []byte("after")); err != nil {
		t.Fatal(err)
	}
	if m := <-got; string(m.Data) != "after" || b.Stats().Invalid != uint64(len(forged)) {
		t.Errorf("handled %+v, %d invalid, want %d", m, b.Stats().Invalid, len(forged))
	}
}

// TestAnycastForged: nobody answers for another, nor without the secret, nor from
// outside.
func TestAnycastForged(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	raw := connect(t, s)
	serve(t, b, "mail", 1, func(_ context.Context, m *Message) ([]byte, error) {
		end := m.asked().nonce + m.asked().end()
		for _, subject := range []string{
			"a.ext.a" + end, "a._.a" + end, // from outside, and from nobody
			"a.x.a" + m.asked().nonce + ".1-0123456789", // without the secret
			"a.x.a" + "012345" + m.asked().end(),        // another's
			"a.x.a" + m.asked().nonce + ".99" + m.asked().end()[len(m.asked().end())-secretLen-1:],
		} {
			if err := raw.Publish(atR+subject, []byte("forged")); err != nil {
				return nil, err
			}
		}
		return []byte("true"), raw.Flush()
	})
	for range 50 {
		if m, err := a.Anycast(ctx, "mail", nil); err != nil || m.From != "b" || string(m.Data) != "true" {
			t.Fatalf("answer %+v, %v", m, err)
		}
	}
}

// TestServeDrained: a node that drains has its services finish what they were given,
// and takes no more.
func TestServeDrained(t *testing.T) {
	a, b := pair(t, startServer(t))
	ctx := deadline(t)
	begun, release := make(chan struct{}, 3), make(chan struct{})
	stop := serve(t, b, "mail", 1, func(context.Context, *Message) ([]byte, error) {
		begun <- struct{}{}
		<-release
		return nil, nil
	})
	errs := make(chan error, 3)
	for range 3 { // one at work, two wait
		go func() { _, err := a.Anycast(ctx, "mail", nil); errs <- err }()
	}
	<-begun
	for b.Stats().Received < 3 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	drained := make(chan error, 1)
	go func() { drained <- b.courier.drain(ctx) }()
	sub := b.courier.services.running[0].sub
	for sub.IsValid() && !sub.IsDraining() && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if err := b.courier.nc.Flush(); err != nil { // the server knows
		t.Fatal(err)
	}
	if _, err := a.Anycast(ctx, "mail", nil); !errors.Is(err, ErrNoReceiver) {
		t.Errorf("Anycast = %v, want ErrNoReceiver", err)
	}
	select {
	case err := <-drained:
		t.Fatalf("drained with three at work: %v", err)
	default:
	}
	if _, err := b.JoinTopic(ctx, "news"); !errors.Is(err, ErrDraining) {
		t.Errorf("JoinTopic = %v, want ErrDraining", err)
	}
	if _, err := b.Anycast(ctx, "mail", nil); !errors.Is(err, ErrDraining) {
		t.Errorf("Anycast = %v, want ErrDraining", err)
	}
	close(release)
	for range 3 {
		if err := <-errs; err != nil {
			t.Errorf("Anycast = %v", err)
		}
	}
	if err := <-drained; err != nil {
		t.Errorf("drain = %v", err)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Serve = %v", err)
	}
}

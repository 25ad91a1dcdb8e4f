package fabric

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
)

// hold has n queue what it sends, until release is called.
func hold(n *Node) (release func()) {
	b := &n.courier.batcher
	b.mu.Lock()
	b.busy = true
	b.mu.Unlock()
	return func() { b.wake <- struct{}{} }
}

// awaitQueued waits until n has queued so many messages.
func awaitQueued(t *testing.T, n *Node, messages int) {
	t.Helper()
	b := &n.courier.batcher
	if err := n.courier.poll(deadline(t), func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		sum := 0
		for _, p := range b.queue {
			sum += p.n
		}
		return sum == messages
	}); err != nil {
		t.Fatal(err)
	}
}

// TestGathered: requests, messages to be acknowledged and their answers share publishes,
// and each caller gets its own.
func TestGathered(t *testing.T) {
	const callers = 100
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	raw := connect(t, s)
	published := make(chan *nats.Msg, 1000)
	for _, subject := range []string{"fab.c1.test.u.b.a", "fab.c1.test.r.a.b.*.*"} {
		if _, err := raw.ChanSubscribe(subject, published); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.Flush(); err != nil {
		t.Fatal(err)
	}
	release, answers := hold(a), hold(b)
	errs := make(chan error, callers)
	for i := range callers {
		go func() {
			if i%4 == 0 {
				errs <- a.SendMsg(ctx, &Message{To: "b", Mode: Acked, Ack: Ack(i / 4 % 2), Data: fmt.Append(nil, i)})
				return
			}
			m, err := a.RequestMsg(ctx, &Message{To: "b", Type: "T", Data: fmt.Append(nil, i)})
			if err == nil && (string(m.Data) != fmt.Sprint("to ", i) || m.From != "b" || m.Type != "A") {
				err = fmt.Errorf("request %d is answered %+v", i, m)
			}
			errs <- err
		}()
	}
	awaitQueued(t, a, callers)
	release()
	for range callers {
		m := receive(t, b)
		if m.IsRequest() != (m.Type == "T") || m.IsRequest() == (m.Mode == Acked) || m.From != "a" || m.Epoch() != a.courier.nonce {
			t.Errorf("received %+v", m)
		}
		if m.IsRequest() {
			if err := m.ReplyMsg(ctx, &Message{Type: "A", Data: fmt.Append([]byte("to "), string(m.Data))}); err != nil {
				t.Error(err)
			}
		} else if err := m.Done(ctx, nil); err != nil {
			t.Error(err)
		}
	}
	awaitQueued(t, b, callers)
	answers()
	for range callers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	// Each side had one parcel to fill, and the publishes of both are seen.
	for range 2 {
		select {
		case <-published:
		case <-ctx.Done():
			t.Fatal("a publish is not seen")
		}
	}
	if err := raw.Flush(); err != nil {
		t.Fatal(err)
	}
	if n := len(published); n != 0 {
		t.Errorf("%d publishes more than the 2 wanted", n)
	}
	for _, n := range []*Node{a, b} {
		if st := n.Stats(); st.Invalid != 0 || st.Rejected != 0 {
			t.Errorf("%+v", st)
		}
	}
}

// TestGatheredOrder: requests keep their place among sends and broadcasts.
func TestGatheredOrder(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	release := hold(a)
	var wg sync.WaitGroup
	const total = 60
	for i := range total {
		m := &Message{To: "b", Data: fmt.Append(nil, i)}
		switch i % 6 {
		case 1, 2: // a request, from here: its caller must be seen to have queued it
			wg.Go(func() {
				if _, err := a.RequestMsg(ctx, m); err != nil {
					t.Error(err)
				}
			})
			awaitQueued(t, a, i+1)
			continue
		case 5:
			m.To = Everyone
		}
		if err := a.SendMsg(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	release()
	for i := range total {
		m := receive(t, b)
		if string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("received %s where %d was due", m.Data, i)
		}
		if m.IsRequest() {
			if err := m.Reply(ctx, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
}

// TestGatheredNobody: the server's 503 for several requests ends each of them, also when
// the caller of the first has given up.
func TestGatheredNobody(t *testing.T) {
	a, _ := pair(t, startServer(t))
	ctx := deadline(t)
	release := hold(a)
	gaveUp, giveUp := context.WithCancel(ctx)
	first := make(chan error, 1)
	go func() { _, err := a.Request(gaveUp, "nobody", nil); first <- err }()
	awaitQueued(t, a, 1)
	giveUp()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	errs := make(chan error, 20)
	for range cap(errs) {
		go func() { _, err := a.Request(ctx, "nobody", nil); errs <- err }()
	}
	awaitQueued(t, a, 1+cap(errs))
	release()
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, ErrNoPeer) {
			t.Errorf("Request = %v, want ErrNoPeer", err)
		}
	}
	a.courier.calls.mu.Lock()
	defer a.courier.calls.mu.Unlock()
	if n := len(a.courier.calls.m); n != 0 {
		t.Errorf("%d calls are left", n)
	}
}

// TestGatheredNotPublished: when the connection is closed, whose request was queued is told.
func TestGatheredNotPublished(t *testing.T) {
	a, _ := pair(t, startServer(t))
	ctx := deadline(t)
	release := hold(a)
	errs := make(chan error, 20)
	for range cap(errs) {
		go func() { _, err := a.Request(ctx, "b", nil); errs <- err }()
	}
	awaitQueued(t, a, cap(errs))
	a.courier.nc.Close()
	release()
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, ErrConnClosed) {
			t.Errorf("Request = %v, want ErrConnClosed", err)
		}
	}
}

// TestGatheredForged: of several answers each counts with its own secret and from the
// process that was asked, and a frame holds nothing else.
func TestGatheredForged(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	raw := connect(t, s)
	got := make(chan string, 1)
	go func() {
		m, err := a.Request(ctx, "b", nil)
		if err != nil {
			t.Error(err)
			close(got)
			return
		}
		got <- string(m.Data)
	}()
	m := receive(t, b)
	id, secret, nonce := m.asked().id, m.asked().secret, m.asked().nonce
	frame := func(items ...item) (f []byte) {
		for i := range items {
			items[i].data = []byte("forged")
			f = appendItem(f, &items[i])
		}
		return f
	}
	right := item{kind: kindAnswer, id: id, secret: secret}
	at := func(from PID, nonce string) string {
		return "fab.c1.test.r.a." + string(from) + "." + string(tag{kind: kindGathered, nonce: nonce, id: id, secret: secret}.append(nil))
	}
	late := map[string][]byte{ // answers to nobody: no fault of theirs
		at("c", nonce): frame(right),
		at("b", nonce): frame(item{kind: kindAnswer, id: id, secret: "0123456789"}, item{kind: kindAnswer, id: id + 1, secret: secret}),
	}
	for subject, data := range late {
		if err := raw.Publish(subject, data); err != nil {
			t.Fatal(err)
		}
	}
	invalid := []struct {
		subject string
		data    []byte
	}{
		{at("b", "012345"), frame(right)}, {at("_", nonce), frame(right)},
		{at("b", nonce), []byte(`{"stream":"S","seq":1}`)},
		{at("b", nonce), frame(item{kind: kindSend, id: 1}, right)},
		{at("b", nonce), frame(item{kind: kindRequest, id: id, secret: secret}, right)},
		{at("b", nonce), frame(item{kind: kindAnswer, id: id, secret: secret, header: nats.Header{"K": {"v"}}})},
	}
	for _, f := range invalid {
		if err := raw.Publish(f.subject, f.data); err != nil {
			t.Fatal(err)
		}
	}
	asks := "fab.c1.test.r.a.b." + string(tag{kind: kindGathered, nonce: nonce, id: 1, secret: "0123456789"}.append(nil))
	if err := raw.PublishRequest("fab.c1.test.u.b.a", asks, frame(item{kind: kindSend, id: 1}, item{kind: kindRequest, id: 1, secret: secret})); err != nil {
		t.Fatal(err)
	}
	if err := raw.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := m.Reply(ctx, []byte("true")); err != nil {
		t.Fatal(err)
	}
	if answer := <-got; answer != "true" {
		t.Errorf("answered %q", answer)
	}
	if n := a.Stats().Invalid; n != uint64(len(invalid)) {
		t.Errorf("%d answers are invalid, want %d", n, len(invalid))
	}
	if err := a.Send(ctx, "b", []byte("last")); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, b); string(m.Data) != "last" || b.Stats().Invalid != 1 {
		t.Errorf("received %q; %d invalid, want 1", m.Data, b.Stats().Invalid)
	}
}

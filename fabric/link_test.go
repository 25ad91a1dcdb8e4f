package fabric

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/window"
)

// reliable sends data in mode Reliable.
func reliable(ctx context.Context, n *Node, to PID, data []byte) error {
	return n.SendMsg(ctx, &Message{To: to, Mode: Reliable, Data: data})
}

// numbered checks that messages come numbered from 1, each once.
func numbered(t *testing.T, ctx context.Context, n *Node, total int) {
	t.Helper()
	for i := 1; i <= total; i++ {
		m, err := n.Receive(ctx)
		if err != nil {
			t.Fatalf("message %d of %d: %v", i, total, err)
		}
		if want := fmt.Sprint(i); string(m.Data) != want || m.Mode != Reliable {
			t.Fatalf("message %.20q, mode %v, want %q", m.Data, m.Mode, want)
		}
	}
}

func TestReliable(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	const total = 20_000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 1; i <= total; i++ {
			if err := reliable(ctx, a, "b", fmt.Append(nil, i)); err != nil {
				t.Errorf("message %d: %v", i, err)
				return
			}
		}
		if err := a.Flush(ctx); err != nil {
			t.Errorf("Flush: %v", err)
		}
	})
	numbered(t, ctx, b, total)
	wg.Wait()
	if n := b.courier.repeated.Load() + b.courier.stray.Load() + b.Stats().Invalid + b.Stats().Rejected; n != 0 {
		t.Errorf("%d messages were sent in vain", n)
	}
}

// TestReliableFields: whatever a message can have goes over a link as well.
func TestReliableFields(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	for i, m := range []Message{
		{ID: 5, Type: "T", Data: []byte("x")},
		{ID: 3, Header: nats.Header{"K": {"v", "w\r\n"}, "L": {"1"}}},
		{Header: nats.Header{"K": {"v"}}, Data: make([]byte, 3*maxChunk), Type: "Big"},
		{ID: 9},
	} {
		m.To, m.Mode = "b", Reliable
		if err := a.SendMsg(ctx, &m); err != nil {
			t.Fatal(err)
		}
		got := receive(t, b)
		if m.ID != 0 && got.ID != m.ID || got.Type != m.Type || !bytes.Equal(got.Data, m.Data) || len(got.Header) != len(m.Header) || got.From != "a" {
			t.Errorf("message %d came as id %d, type %q, header %v, %d bytes", i, got.ID, got.Type, got.Header, len(got.Data))
		}
		if m.Header != nil && got.Header.Get("K") != "v" {
			t.Errorf("message %d has header %v", i, got.Header)
		}
	}
}

// TestBackPressure: a receiver that does not receive holds its sender back, whatever
// its inbox, and refuses nothing.
func TestBackPressure(t *testing.T) {
	s := startServer(t)
	a := startNode(t, connect(t, s), "a", nil, nil)
	b := startNode(t, connect(t, s), "b", nil, func(c *courierConfig) { c.inbox = Inbox{Messages: 100} })
	ctx := deadline(t)
	sent := make(chan int, 1)
	go func() {
		n := 0
		defer func() { sent <- n }()
		for {
			limit := 30 * time.Second
			if n >= int(firstGrant.Seq) { // this one is to wait in vain
				limit = time.Second
			}
			brief, cancel := context.WithTimeout(ctx, limit)
			err := reliable(brief, a, "b", fmt.Append(nil, n+1))
			cancel()
			if err != nil {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("message %d: %v", n+1, err)
				}
				return
			}
			n++
		}
	}()
	n := <-sent
	if n != int(firstGrant.Seq) {
		t.Errorf("%d messages were sent to one who takes none, want %d", n, firstGrant.Seq)
	}
	numbered(t, ctx, b, n)
	if err := reliable(ctx, a, "b", fmt.Append(nil, n+1)); err != nil {
		t.Errorf("after it was emptied: %v", err)
	}
	if m := receive(t, b); string(m.Data) != fmt.Sprint(n+1) {
		t.Errorf("received %q", m.Data)
	}
	if st := b.Stats(); st.Rejected != 0 {
		t.Errorf("%d were rejected", st.Rejected)
	}
}

// TestReliableGone: what cannot arrive any more is reported.
func TestReliableGone(t *testing.T) {
	s := startServer(t)
	v := &view{here: map[PID]bool{"b": true}, reads: make(map[PID]int)}
	a := startNode(t, connect(t, s), "a", v, nil)
	ctx := deadline(t)
	if err := reliable(ctx, a, "nobody", nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Flush(ctx); !errors.Is(err, ErrNoPeer) {
		t.Errorf("to nobody: %v", err)
	}
	nc := connect(t, s)
	b := startNode(t, nc, "b", v, nil)
	if err := reliable(ctx, a, "b", []byte("1")); err != nil {
		t.Fatal(err)
	}
	numbered(t, ctx, b, 1)
	if err := a.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	// b is replaced by another process with its PID.
	b.courier.close()
	if err := reliable(ctx, a, "b", []byte("2")); err != nil {
		t.Fatal(err)
	}
	b = startNode(t, connect(t, s), "b", v, nil)
	err := a.Flush(ctx)
	if u, ok := errors.AsType[Undeliverable](err); !ok || u.To != "b" || !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("to one that was replaced: %v", err)
	}
	if err := reliable(ctx, a, "b", []byte("1")); err != nil {
		t.Fatal(err)
	}
	numbered(t, ctx, b, 1)
}

// TestReliableEveryone: a broadcast is one message to each.
func TestReliableEveryone(t *testing.T) {
	s := startServer(t)
	v := &view{here: map[PID]bool{"a": true, "b": true, "c": true}, reads: make(map[PID]int)}
	a := startNode(t, connect(t, s), "a", v, nil)
	b := startNode(t, connect(t, s), "b", v, nil)
	c := startNode(t, connect(t, s), "c", v, nil)
	ctx := deadline(t)
	if err := reliable(ctx, a, Everyone, []byte("1")); err != nil {
		t.Fatal(err)
	}
	numbered(t, ctx, b, 1)
	numbered(t, ctx, c, 1)
}

// TestLarge: data of any size, in every way of sending, arrives as it was.
func TestLarge(t *testing.T) {
	s := startServer(t)
	v := &view{here: map[PID]bool{"a": true, "b": true}, reads: make(map[PID]int)}
	a := startNode(t, connect(t, s), "a", v, nil)
	b := startNode(t, connect(t, s), "b", v, nil)
	ctx := deadline(t)
	random := rand.NewChaCha8([32]byte{})
	for _, size := range []int{maxChunk - 1, maxChunk, maxChunk + 1, 2 * maxChunk, 5<<20 + 17} {
		data := make([]byte, size)
		_, _ = random.Read(data)
		go func() {
			m := receive(t, b)
			if !m.IsRequest() || !bytes.Equal(m.Data, data) {
				t.Errorf("request of %d bytes came as %d", size, len(m.Data))
			}
			if err := m.Reply(ctx, m.Data); err != nil {
				t.Errorf("Reply: %v", err)
			}
		}()
		if m, err := a.Request(ctx, "b", data); err != nil || !bytes.Equal(m.Data, data) {
			t.Fatalf("request of %d bytes: %v", size, err)
		}
		for name, send := range map[string]func() error{
			"Send":      func() error { return a.Send(ctx, "b", data) },
			"Broadcast": func() error { return a.Broadcast(ctx, data) },
			"Acked":     func() error { return ack(ctx, a, Message{To: "b", Data: data}) },
			"Reliable":  func() error { return reliable(ctx, a, "b", data) },
		} {
			if err := send(); err != nil {
				t.Errorf("%s of %d bytes: %v", name, size, err)
			}
			if m := receive(t, b); !bytes.Equal(m.Data, data) {
				t.Errorf("%s of %d bytes came as %d", name, size, len(m.Data))
			}
		}
	}
	b.courier.memory.mu.Lock()
	defer b.courier.memory.mu.Unlock()
	if n := b.courier.memory.used; n != 0 {
		t.Errorf("%d bytes are still reserved", n)
	}
}

// TestLargeMemory: messages in parts wait for each other when there is no memory for
// all, and one that there never is memory for is refused, and its sender told.
func TestLargeMemory(t *testing.T) {
	s := startServer(t)
	const size = 1 << 20
	b := startNode(t, connect(t, s), "b", nil, func(c *courierConfig) { c.inbox = Inbox{Bytes: size + size/2} })
	ctx := deadline(t)
	const senders, each = 3, 5
	var first *Node
	told := make(chan Undeliverable, 1)
	for i := range senders {
		a := startNode(t, connect(t, s), PID(fmt.Sprint("a", i)), nil, func(c *courierConfig) {
			c.onUndeliverable = func(u Undeliverable) { told <- u }
		})
		first = a
		go func() {
			for n := range each {
				if err := reliable(ctx, a, "b", bytes.Repeat([]byte{byte(n)}, size)); err != nil {
					t.Errorf("Send: %v", err)
				}
			}
		}()
	}
	got := make(map[PID]int)
	for range senders * each {
		m := receive(t, b)
		if len(m.Data) != size || m.Data[0] != byte(got[m.From]) {
			t.Fatalf("%d bytes of %d from %s, want %d", len(m.Data), m.Data[0], m.From, got[m.From])
		}
		got[m.From]++
	}
	if err := first.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := ack(ctx, first, Message{To: "b", Data: make([]byte, 2*size)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("larger than b ever keeps: %v", err)
	}
	if err := reliable(ctx, first, "b", make([]byte, 2*size)); err != nil {
		t.Fatal(err)
	}
	select {
	case u := <-told:
		if !errors.Is(u, ErrTooLarge) {
			t.Errorf("told %v", u)
		}
	case <-ctx.Done():
		t.Error("the sender is not told")
	}
}

// TestReliableRestarted: a sender that begins anew under its PID is heard from its
// first message on, and a receiver that does gets what is sent to it from then on.
func TestReliableRestarted(t *testing.T) {
	s := startServer(t)
	v := &view{here: map[PID]bool{"a": true, "b": true}, reads: make(map[PID]int)}
	b := startNode(t, connect(t, s), "b", v, nil)
	ctx := deadline(t)
	for range 3 {
		a := startNode(t, connect(t, s), "a", v, nil)
		for i := 1; i <= 10; i++ {
			if err := reliable(ctx, a, "b", fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
		numbered(t, ctx, b, 10)
		a.courier.close()
	}
	a := startNode(t, connect(t, s), "a", v, nil)
	for i := range 3 {
		if err := reliable(ctx, a, "b", []byte("1")); err != nil {
			t.Fatal(err)
		}
		// What was under way when b ended is reported; its next life misses nothing.
		if err := a.Flush(ctx); err != nil && (i == 0 || !errors.Is(err, ErrUnknownOutcome)) {
			t.Fatal(err)
		}
		if i > 0 {
			if err := reliable(ctx, a, "b", []byte("1")); err != nil {
				t.Fatal(err)
			}
		}
		numbered(t, ctx, b, 1)
		b.courier.close()
		b = startNode(t, connect(t, s), "b", v, nil)
	}
}

// TestLargeReportedWhole: a message in parts, of which the first were acknowledged, is
// reported when the link fails.
func TestLargeReportedWhole(t *testing.T) {
	s := startServer(t)
	a := startNode(t, connect(t, s), "a", &view{here: map[PID]bool{"b": true}, reads: make(map[PID]int)}, nil)
	b := connect(t, s) // speaks for the process b
	names := make(chan string, 100)
	if _, err := b.Subscribe(a.courier.subj.prefix+classPeer+"b.*", func(m *nats.Msg) {
		rest, _ := newSubjects("c1", "test", "b").cutReply(m.Reply, "a", "b")
		if tg, ok := parseTag(rest); ok && tg.kind == kindLink {
			names <- tg.secret
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		sent <- a.SendMsg(t.Context(), &Message{To: "b", Mode: Reliable, ID: 7, Data: make([]byte, 1<<20)})
	}()
	say := func(name string, k kind, data []byte) {
		word := tag{kind: k, nonce: a.courier.nonce, id: 1, secret: name}
		if err := b.Publish(string(word.append([]byte(a.courier.subj.reply("a", "b")))), data); err != nil {
			t.Error(err)
		}
	}
	name := <-names
	say(name, kindState, appendState(nil, window.State{Cum: 1, Grant: window.Grant{Seq: 4096, Bytes: 4 << 20}}))
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	say(name, kindNoLink, nil)
	err := a.Flush(deadline(t))
	if u, ok := errors.AsType[Undeliverable](err); !ok || u.ID != 7 || !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("Flush: %v, want message 7 of unknown outcome", err)
	}
}

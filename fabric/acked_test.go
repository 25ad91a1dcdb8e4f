package fabric

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// ack sends m in mode Acked and returns what the sender learns.
func ack(ctx context.Context, n *Node, m Message) error {
	m.Mode = Acked
	return n.SendMsg(ctx, &m)
}

func TestAcked(t *testing.T) {
	s := startServer(t)
	v := &view{here: map[PID]bool{"a": true, "b": true}, reads: make(map[PID]int)}
	a := startNode(t, connect(t, s), "a", v, nil)
	b := startNode(t, connect(t, s), "b", v, nil)
	ctx := deadline(t)

	if err := ack(ctx, a, Message{To: "b", ID: 7, Type: "T1", Data: []byte("x")}); err != nil {
		t.Fatalf("accepted: %v", err)
	}
	if m := receive(t, b); m.ID != 7 || m.Type != "T1" || m.Mode != Acked || m.IsRequest() {
		t.Errorf("received %+v", m)
	}
	if err := ack(ctx, a, Message{To: "nobody"}); !errors.Is(err, ErrNoPeer) {
		t.Errorf("to nobody: %v", err)
	}
	if err := ack(ctx, a, Message{To: "a"}); err != nil {
		t.Errorf("to itself: %v", err)
	}
	if m := receive(t, a); m.From != "a" || m.Mode != Acked {
		t.Errorf("received %+v", m)
	}

	go func() {
		_ = b.Handle(t.Context(), 1, func(_ context.Context, m *Message) ([]byte, error) {
			if string(m.Data) == "bad" {
				return nil, fmt.Errorf("handler: %w", &RemoteError{Code: "E7", Message: "no"})
			}
			return []byte("discarded"), nil
		})
	}()
	if err := ack(ctx, a, Message{To: "b", Ack: Handled}); err != nil {
		t.Errorf("handled: %v", err)
	}
	err := ack(ctx, a, Message{To: "b", Ack: Handled, Data: []byte("bad")})
	if e, ok := errors.AsType[*RemoteError](err); !ok || e.Code != "E7" || e.PID != "b" || e.Message != "handler: no" {
		t.Errorf("handler failed: %#v", err)
	}
	if err := ack(ctx, a, Message{To: Everyone, Ack: Handled}); err != nil {
		t.Errorf("everyone: %v", err)
	}
	v.mu.Lock()
	v.here["c"] = true // in the view, and not there
	v.mu.Unlock()
	err = ack(ctx, a, Message{To: Everyone})
	if u, ok := errors.AsType[Undeliverable](err); !ok || u.To != "c" || !errors.Is(err, ErrUnreachable) {
		t.Errorf("everyone, c being away: %v", err)
	}
}

// TestAckedUnknown: without an answer, nobody says that it did not arrive.
func TestAckedUnknown(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx, cancel := context.WithCancel(deadline(t))
	done := make(chan error, 1)
	go func() { done <- ack(ctx, a, Message{To: "b", Ack: Handled}) }()
	m := receive(t, b)
	cancel()
	if err := <-done; !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.Canceled) {
		t.Errorf("nobody answers: %v", err)
	}
	if err := m.Done(t.Context(), nil); err != nil {
		t.Errorf("Done: %v", err)
	}
	if err := m.Done(t.Context(), nil); !errors.Is(err, ErrReplied) {
		t.Errorf("Done again: %v", err)
	}
}

// TestFullInboxTold: whoever sends to a full inbox learns of it, in every mode.
func TestFullInboxTold(t *testing.T) {
	s := startServer(t)
	told := make(chan Undeliverable, 10)
	a := startNode(t, connect(t, s), "a", nil, func(c *courierConfig) {
		c.onUndeliverable = func(u Undeliverable) { told <- u }
	})
	b := startNode(t, connect(t, s), "b", nil, func(c *courierConfig) { c.inbox = Inbox{Messages: 1} })
	ctx := deadline(t)
	if err := ack(ctx, a, Message{To: "b"}); err != nil {
		t.Fatal(err)
	}
	if err := ack(ctx, a, Message{To: "b"}); !errors.Is(err, ErrInboxFull) {
		t.Errorf("acked: %v", err)
	}
	for id := range uint64(3) {
		if err := a.SendMsg(ctx, &Message{To: "b", ID: 100 + id}); err != nil {
			t.Fatal(err)
		}
	}
	for id := range uint64(3) {
		select {
		case u := <-told:
			if u.ID != 100+id || u.To != "b" || !errors.Is(u, ErrInboxFull) {
				t.Errorf("told of %v, want message %d", u, 100+id)
			}
		case <-ctx.Done():
			t.Fatal("the sender of a refused message is not told")
		}
	}
	if st := b.Stats(); st.Rejected != 4 || st.Received != 1 {
		t.Errorf("%+v", st)
	}
}

func TestBadMessage(t *testing.T) {
	s := startServer(t)
	a, _ := pair(t, s)
	for _, m := range []Message{
		{To: "b", Type: strings.Repeat("x", MaxType+1)}, {To: "b", Type: "a.b"}, {To: "b", Type: "a-b"},
	} {
		if _, ok := errors.AsType[*NameError](a.SendMsg(t.Context(), &m)); !ok {
			t.Errorf("%+v is sent", m)
		}
	}
	for _, m := range []Message{{To: "b", Mode: 99}, {To: "b", Mode: Acked, Ack: 9}} {
		if err := a.SendMsg(t.Context(), &m); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", m, err)
		}
	}
}

// TestTypes: a Type goes along with every kind of message, whatever others came
// before from the same sender.
func TestTypes(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	types := []string{"", "A", "A", "", "Zz09", strings.Repeat("x", MaxType), "A"}
	for _, typ := range types {
		if err := a.SendMsg(ctx, &Message{To: "b", Type: typ}); err != nil {
			t.Fatal(err)
		}
		if err := a.SendMsg(ctx, &Message{To: Everyone, Type: typ}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 * len(types) {
		if m := receive(t, b); m.Type != types[i/2] || m.Mode != Fast {
			t.Errorf("message %d is %+v, want type %q", i, m, types[i/2])
		}
	}
	go func() {
		m := receive(t, b)
		if err := m.ReplyMsg(ctx, &Message{Type: m.Type + "2", Data: m.Data}); err != nil {
			t.Errorf("ReplyMsg: %v", err)
		}
	}()
	if m, err := a.RequestMsg(ctx, &Message{To: "b", ID: 5, Type: "Q", Data: []byte("d")}); err != nil || m.Type != "Q2" || m.ID != 5 || string(m.Data) != "d" {
		t.Errorf("answer %+v, %v", m, err)
	}
}

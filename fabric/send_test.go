package fabric

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
)

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
	// Data of any size is sent in parts; headers are not.
	wide := nats.Header{"K": {strings.Repeat("v", int(a.courier.nc.MaxPayload()))}}
	for _, mode := range []Mode{Fast, Acked, Reliable} {
		if err := a.SendMsg(ctx, &Message{To: "b", Mode: mode, Header: wide}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v: header of too much = %v, want ErrTooLarge", mode, err)
		}
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
	// The receiver's inbox holds 65 536: the sender is at most 50 000 ahead.
	read := make(chan struct{}, 4+total/10_000)
	for range 4 {
		read <- struct{}{}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(read)
	wg.Go(func() {
		for i := range total {
			to := PID("b")
			if i%3 == 0 {
				to = Everyone
			}
			if err := a.Send(ctx, to, nil); err != nil {
				t.Errorf("Send: %v", err)
			}
			if i%10_000 == 9_999 {
				if err := a.Flush(ctx); err != nil {
					t.Errorf("Flush: %v", err)
				}
				<-read
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
		if want%10_000 == 0 {
			read <- struct{}{}
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

// Of those that are only counted, too, what may have arrived is not said to be nowhere.
func TestFlushCountsWhatIsInDoubt(t *testing.T) {
	a := startNode(t, connect(t, startServer(t)), "a", nil, nil)
	doubtful := fmt.Errorf("%w: it has left: %w", ErrUnknownOutcome, ErrNoPeer)
	for i := range maxKept + 10 {
		a.courier.clerk.add(entry{to: "b", id: uint64(i), err: doubtful})
	}
	joined := a.Flush(deadline(t)).(interface{ Unwrap() []error }).Unwrap()
	if last := joined[len(joined)-1]; len(joined) != maxKept+1 || !errors.Is(last, ErrUnknownOutcome) || errors.Is(last, ErrNoPeer) {
		t.Errorf("Flush joined %d errors, the last %v; want %d, of unknown outcome", len(joined), last, maxKept+1)
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

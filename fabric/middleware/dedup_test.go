package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/middleware"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

func keyed(from fabric.PID, key string) *fabric.Message {
	return &fabric.Message{From: from, Header: nats.Header{middleware.DefaultDedupHeader: {key}}}
}

func TestDedup(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		var handled, twice int
		var fail error
		h := middleware.Dedup{Window: time.Minute, Keys: 3, OnDuplicate: func(*fabric.Message) { twice++ }}.Handler(
			func(context.Context, *fabric.Message) ([]byte, error) {
				handled++
				return nil, fail
			})
		send := func(m *fabric.Message, wantHandled bool) {
			t.Helper()
			h0, d0 := handled, twice
			_, err := h(t.Context(), m)
			if got := handled > h0; got != wantHandled || got == (twice > d0) || err != fail {
				t.Errorf("%v: handled %v, want %v; %v", m, got, wantHandled, err)
			}
		}
		send(keyed("a", "1"), true)
		send(keyed("a", "1"), false)
		send(keyed("b", "1"), true) // another sender
		send(&fabric.Message{From: "a"}, true)
		send(&fabric.Message{From: "a"}, true) // no key
		time.Sleep(time.Minute)
		send(keyed("a", "1"), true) // the window is over
		fail = errors.New("x")
		send(keyed("a", "2"), true)
		send(keyed("a", "2"), true) // the first was not handled
		fail = nil
		send(keyed("a", "2"), true)
		send(keyed("a", "2"), false)
		send(keyed("a", "3"), true)
		send(keyed("a", "4"), true)
		send(keyed("a", "5"), true)
		send(keyed("a", "2"), true) // there were three others
		send(keyed("a", "5"), false)
	})
}

// A duplicate waits for the first one and then does as that did.
func TestDedupWaits(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		var mu sync.Mutex
		var ran []time.Time
		h := middleware.Dedup{}.Handler(func(context.Context, *fabric.Message) ([]byte, error) {
			mu.Lock()
			ran = append(ran, time.Now())
			first := len(ran) == 1
			mu.Unlock()
			time.Sleep(time.Second)
			if first {
				panic("the first one")
			}
			return nil, nil
		})
		h = middleware.Recover{Logger: discard}.Handler(h)
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { _, _ = h(t.Context(), keyed("a", "1")) })
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		synctest.Wait()
		if _, err := h(ctx, keyed("a", "1")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a duplicate whose context ends: %v", err)
		}
		wg.Wait()
		if len(ran) != 2 || ran[1].Sub(ran[0]) != time.Second {
			t.Errorf("handled at %v, want once more when the first had failed", ran)
		}
	})
}

// A forgetful sender loses the outcome of its first try, which arrived.
type forgetful struct{ lost *int }

func (f forgetful) Sender(next middleware.Sender) middleware.Sender {
	return func(ctx context.Context, m *fabric.Message, request bool) (*fabric.Message, error) {
		answer, err := next(ctx, m, request)
		if err == nil && *f.lost > 0 {
			*f.lost--
			return nil, fabric.ErrUnknownOutcome
		}
		return answer, err
	}
}

// What was sent several times because its outcome was unknown is handled once, and
// the errors of one side are known on the other.
func TestDedupOverANetwork(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _ := join(t, s, "a")
		b, _ := join(t, s, "b")
		handled := 0
		h := middleware.Handle(func(ctx context.Context, m *fabric.Message) ([]byte, error) {
			switch string(m.Data) {
			case "panic":
				panic("x")
			case "wait":
				<-ctx.Done()
				return nil, ctx.Err()
			}
			handled++
			return []byte("ok"), nil
		}, middleware.Recover{Logger: discard}, middleware.Dedup{}, middleware.Timeout{After: time.Second})
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); wg.Wait() }()
		wg.Go(func() { _ = b.Handle(ctx, 1, h) })
		lost := 0
		p := middleware.Wrap(a, middleware.Dedup{},
			middleware.Retry{If: func(err error) bool { return errors.Is(err, fabric.ErrUnknownOutcome) }}, forgetful{&lost})
		for i := range 10 {
			lost = 2
			m := &fabric.Message{To: "b", Mode: fabric.Acked, Ack: fabric.Handled}
			if err := p.SendMsg(t.Context(), m); err != nil || handled != i+1 || lost != 0 || m.Header != nil {
				t.Fatalf("send %d: %v; handled %d; %d more tries", i, err, handled, lost)
			}
		}
		lost = 1
		if _, err := p.Request(t.Context(), "b", nil); !errors.Is(err, middleware.ErrDuplicate) || handled != 11 {
			t.Errorf("a request whose answer was lost: %v; handled %d", err, handled)
		}
		for data, want := range map[string]error{"panic": middleware.ErrPanic, "wait": middleware.ErrTimeout} {
			if _, err := p.Request(t.Context(), "b", []byte(data)); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", data, err, want)
			}
		}
	})
}

// TestDedupByID: a message that is sent again under its ID is handled once, one of the
// sender's next life with that ID is not the same, and no header is needed.
func TestDedupByID(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		b, _ := join(t, s, "b")
		var handled []string
		d := middleware.Dedup{Key: middleware.ByID}
		go func() {
			_ = b.Handle(t.Context(), 1, middleware.Handle(func(_ context.Context, m *fabric.Message) ([]byte, error) {
				if m.Header != nil {
					t.Errorf("a header: %v", m.Header)
				}
				handled = append(handled, string(m.Data))
				return nil, nil
			}, d))
		}()
		for life := range 2 {
			a, _ := join(t, s, "a")
			p := middleware.Wrap(a, d)
			for _, mode := range []fabric.Mode{fabric.Fast, fabric.Acked, fabric.Reliable} {
				m := &fabric.Message{To: "b", ID: 1<<32 + uint64(mode), Mode: mode, Ack: fabric.Handled, Data: fmt.Append(nil, life, mode)}
				for range 3 {
					if err := p.SendMsg(t.Context(), m); err != nil {
						t.Fatal(err)
					}
				}
				if err := a.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := a.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if got, want := fmt.Sprint(handled), "[0 fast 0 acked 0 reliable 1 fast 1 acked 1 reliable]"; got != want {
			t.Errorf("handled %s, want %s", got, want)
		}
		if key := middleware.ByID(&fabric.Message{From: fabric.External, ID: 7}); key != "" {
			t.Errorf("ByID of what is from outside = %q", key)
		}
	})
}

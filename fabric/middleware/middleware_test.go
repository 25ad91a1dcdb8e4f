package middleware_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/middleware"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

var discard = slog.New(slog.DiscardHandler)

// A node of the test's own: a list of what sending returns, each once.
type scripted struct {
	errs []error
	sent []*fabric.Message
	at   []time.Time
}

func (s *scripted) SendMsg(_ context.Context, m *fabric.Message) error {
	s.sent, s.at = append(s.sent, m), append(s.at, time.Now())
	if len(s.errs) == 0 {
		return nil
	}
	err := s.errs[0]
	s.errs = s.errs[1:]
	return err
}

func (s *scripted) RequestMsg(ctx context.Context, m *fabric.Message) (*fabric.Message, error) {
	return &fabric.Message{From: m.To}, s.SendMsg(ctx, m)
}

// A trail notes who was called.
type trail struct {
	name string
	in   *[]string
}

func (t trail) Handler(next middleware.Handler) middleware.Handler {
	return func(ctx context.Context, m *fabric.Message) ([]byte, error) {
		*t.in = append(*t.in, t.name)
		return next(ctx, m)
	}
}

func (t trail) Sender(next middleware.Sender) middleware.Sender {
	return func(ctx context.Context, m *fabric.Message, request bool) (*fabric.Message, error) {
		*t.in = append(*t.in, fmt.Sprint(t.name, request))
		return next(ctx, m, request)
	}
}

func TestTheFirstIsOutermost(t *testing.T) {
	var got []string
	h := middleware.Handle(func(context.Context, *fabric.Message) ([]byte, error) { return []byte("x"), nil },
		trail{"a", &got}, trail{"b", &got})
	if data, err := h(t.Context(), &fabric.Message{}); string(data) != "x" || err != nil {
		t.Errorf("the handler returned %q, %v", data, err)
	}
	p := middleware.Wrap(&scripted{}, trail{"c", &got}, trail{"d", &got})
	if err := p.Send(t.Context(), "x", nil); err != nil {
		t.Error(err)
	}
	if m, err := p.Request(t.Context(), "x", nil); err != nil || m.From != "x" {
		t.Errorf("Request = %v, %v", m, err)
	}
	if want := []string{"a", "b", "cfalse", "dfalse", "ctrue", "dtrue"}; !slices.Equal(got, want) {
		t.Errorf("called %v, want %v", got, want)
	}
}

func TestRecover(t *testing.T) {
	var log bytes.Buffer
	r := middleware.Recover{Logger: slog.New(slog.NewTextHandler(&log, nil))}
	cause := errors.New("cause")
	h := r.Handler(func(context.Context, *fabric.Message) ([]byte, error) { panic(cause) })
	_, err := h(t.Context(), &fabric.Message{ID: 77})
	e, ok := errors.AsType[*middleware.PanicError](err)
	if !ok || e.Value != cause || !bytes.Contains(e.Stack, []byte("TestRecover")) || !errors.Is(err, middleware.ErrPanic) || !errors.Is(err, cause) {
		t.Errorf("the handler's panic is %v", err)
	}
	if strings.Contains(err.Error(), "cause") {
		t.Errorf("%q tells a sender what is inside", err)
	}
	if s := log.String(); !strings.Contains(s, "id=77") || !strings.Contains(s, "cause") || !strings.Contains(s, "TestRecover") {
		t.Errorf("logged %s", s)
	}
	s := r.Sender(func(context.Context, *fabric.Message, bool) (*fabric.Message, error) { panic("x") })
	if _, err := s(t.Context(), &fabric.Message{}, false); !errors.Is(err, middleware.ErrPanic) {
		t.Errorf("the sender's panic is %v", err)
	}
}

func TestTimeout(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		wait := func(ctx context.Context, _ *fabric.Message) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		began := time.Now()
		h := middleware.Timeout{After: time.Minute}.Handler(wait)
		_, err := h(t.Context(), &fabric.Message{})
		e, ok := errors.AsType[*fabric.RemoteError](err)
		if !errors.Is(err, middleware.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || !ok || e.Code != middleware.CodeTimeout || time.Since(began) != time.Minute {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := h(ctx, &fabric.Message{}); errors.Is(err, middleware.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a limit of the caller's is %v", err)
		}
		late := middleware.Timeout{}.Handler(func(ctx context.Context, _ *fabric.Message) ([]byte, error) {
			<-ctx.Done()
			return []byte("done"), nil
		})
		began = time.Now()
		if data, err := late(t.Context(), &fabric.Message{}); string(data) != "done" || err != nil || time.Since(began) != middleware.DefaultTimeout {
			t.Errorf("a late result is %q, %v, after %v", data, err, time.Since(began))
		}
		s := middleware.Timeout{After: time.Second}.Sender(func(ctx context.Context, _ *fabric.Message, _ bool) (*fabric.Message, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		if _, err := s(t.Context(), &fabric.Message{}, true); !errors.Is(err, middleware.ErrTimeout) {
			t.Errorf("a late answer is %v", err)
		}
	})
}

func TestRetry(t *testing.T) {
	some := fmt.Errorf("send: %w", errors.Join(fabric.Undeliverable{To: "x", Err: fabric.ErrUnreachable}))
	for _, c := range []struct {
		name  string
		retry middleware.Retry
		errs  []error
		tries int
		want  error
	}{
		{"passes", middleware.Retry{}, []error{fabric.ErrDisconnected, fabric.ErrInboxFull}, 3, nil},
		{"stays", middleware.Retry{}, []error{fabric.ErrUnreachable, fabric.ErrUnreachable, fabric.ErrDisconnected}, 3, fabric.ErrDisconnected},
		{"more", middleware.Retry{Tries: 5}, []error{fabric.ErrUnreachable, fabric.ErrUnreachable, fabric.ErrUnreachable, fabric.ErrUnreachable}, 5, nil},
		{"nobody serves", middleware.Retry{}, []error{fmt.Errorf("x: %w", fabric.ErrNoReceiver)}, 2, nil},
		{"nobody", middleware.Retry{}, []error{fabric.ErrNoPeer}, 1, fabric.ErrNoPeer},
		{"perhaps arrived", middleware.Retry{}, []error{fmt.Errorf("%w: %w", fabric.ErrUnknownOutcome, fabric.ErrDisconnected)}, 1, fabric.ErrUnknownOutcome},
		{"some have it", middleware.Retry{}, []error{some}, 1, fabric.ErrUnreachable},
		{"handler's", middleware.Retry{}, []error{&fabric.RemoteError{PID: "x"}}, 1, &fabric.RemoteError{}},
		{"asked for", middleware.Retry{If: func(err error) bool { return err == fabric.ErrNoPeer }}, []error{fabric.ErrNoPeer}, 2, nil},
	} {
		natstest.FakeTime(t, func(t *testing.T) {
			n := &scripted{errs: c.errs}
			err := middleware.Wrap(n, c.retry).Send(t.Context(), "x", []byte("data"))
			if e, ok := c.want.(*fabric.RemoteError); ok {
				if !errors.As(err, &e) {
					t.Errorf("%s: %v", c.name, err)
				}
			} else if !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
			if len(n.sent) != c.tries {
				t.Errorf("%s: sent %d times, want %d", c.name, len(n.sent), c.tries)
			}
			most := middleware.DefaultWait
			for i := 1; i < len(n.at); i++ {
				if gap := n.at[i].Sub(n.at[i-1]); gap > most || gap < most/2 {
					t.Errorf("%s: %v between try %d and the next, want %v to %v", c.name, gap, i, most/2, most)
				}
				most *= 2
			}
		})
	}
}

func TestRetryEnds(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		n := &scripted{errs: slices.Repeat([]error{fabric.ErrDisconnected}, 1000)}
		began := time.Now()
		err := middleware.Wrap(n, middleware.Retry{Tries: 1000}).Send(ctx, "x", nil)
		if !errors.Is(err, fabric.ErrDisconnected) || time.Since(began) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if got := len(n.sent); got < 9 || got > 16 {
			t.Errorf("%d tries in 10 s, want 9 to 16", got)
		}
		tries := 0
		h := middleware.Retry{}.Handler(func(context.Context, *fabric.Message) ([]byte, error) {
			if tries++; tries < 3 {
				return nil, errors.New("not yet")
			}
			return nil, &fabric.RemoteError{Code: "final"}
		})
		if _, err := h(t.Context(), &fabric.Message{}); tries != 3 || err == nil {
			t.Errorf("%d tries, %v", tries, err)
		}
	})
}

func TestThrottle(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		n := &scripted{}
		p := middleware.Wrap(n, middleware.Throttle{Rate: 10, Burst: 3})
		began := time.Now()
		for range 13 {
			if err := p.Send(t.Context(), "x", nil); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("13 messages at 10 a second, 3 of them at once, took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := p.Send(ctx, "x", nil); !errors.Is(err, context.DeadlineExceeded) || len(n.sent) != 13 {
			t.Errorf("a context that ends first: %v, and %d sent", err, len(n.sent))
		}
		time.Sleep(50 * time.Millisecond) // the turn that was given back
		began = time.Now()
		if err := p.Send(t.Context(), "x", nil); err != nil || time.Since(began) != 0 {
			t.Errorf("after the pause: %v, %v", err, time.Since(began))
		}
		handled := 0
		h := middleware.Throttle{Rate: 1, Reject: true, PerPeer: true}.Handler(func(context.Context, *fabric.Message) ([]byte, error) {
			handled++
			return nil, nil
		})
		for i, c := range []struct {
			from fabric.PID
			ok   bool
		}{{"a", true}, {"a", false}, {"b", true}, {"b", false}} {
			if _, err := h(t.Context(), &fabric.Message{From: c.from}); (err == nil) != c.ok || err != nil && !errors.Is(err, middleware.ErrThrottled) {
				t.Errorf("message %d, from %s: %v", i, c.from, err)
			}
		}
		time.Sleep(time.Second)
		if _, err := h(t.Context(), &fabric.Message{From: "a"}); err != nil || handled != 3 {
			t.Errorf("a second later: %v; %d handled, want 3", err, handled)
		}
		free := middleware.Throttle{}.Handler(func(context.Context, *fabric.Message) ([]byte, error) { return nil, nil })
		began = time.Now()
		for range 1000 {
			_, _ = free(t.Context(), &fabric.Message{})
		}
		if time.Since(began) != 0 {
			t.Error("no rate is a bound")
		}
	})
}

func TestSlow(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		var log bytes.Buffer
		s := middleware.Slow{Over: time.Second, Logger: slog.New(slog.NewTextHandler(&log, nil))}
		took := time.Second - 1
		h := s.Handler(func(context.Context, *fabric.Message) ([]byte, error) {
			time.Sleep(took)
			return nil, errors.New("why")
		})
		_, _ = h(t.Context(), &fabric.Message{ID: 7})
		if log.Len() > 0 {
			t.Errorf("logged of a fast one: %s", &log)
		}
		took = 3 * time.Second
		_, _ = h(t.Context(), &fabric.Message{ID: 8})
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "done=false took=1s") || !strings.Contains(lines[1], "done=true took=3s err=why") ||
			!strings.Contains(lines[1], "id=8") {
			t.Errorf("logged %q", lines)
		}
	})
}

func join(t *testing.T, s *natstest.Server, pid fabric.PID, tune ...func(*fabric.Config)) (*fabric.Node, *natstest.Link) {
	t.Helper()
	l := s.Link()
	cfg := fabric.Config{Cluster: "c", PID: pid, NATS: append(natstest.FastOptions(), nats.InProcessServer(l))}
	for _, f := range tune {
		f(&cfg)
	}
	n, err := fabric.Join(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Leave(context.WithoutCancel(t.Context())) })
	return n, l
}

// Over a connection that breaks, and to an inbox that is full, every message arrives
// once with a Retry.
func TestRetryOverANetwork(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, link := join(t, s, "a", func(c *fabric.Config) { c.Mode = fabric.Acked })
		b, _ := join(t, s, "b", func(c *fabric.Config) { c.Inbox.Messages = 1 })
		const count = 10
		handled := make(chan string, 2*count) // more than come
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); wg.Wait() }()
		wg.Go(func() {
			_ = b.Handle(ctx, 1, func(_ context.Context, m *fabric.Message) ([]byte, error) {
				handled <- string(m.Data)
				time.Sleep(300 * time.Millisecond) // the inbox fills
				return nil, nil
			})
		})
		p := middleware.Wrap(a, middleware.Retry{Tries: 100})
		events := a.Events(t.Context())
		link.Cut()
		for e := range events {
			if e.Kind == fabric.Disconnected {
				break
			}
		}
		if err := a.Send(t.Context(), "b", nil); !errors.Is(err, fabric.ErrDisconnected) {
			t.Fatalf("without a connection: %v", err)
		}
		wg.Go(func() { time.Sleep(5 * time.Second); link.Heal() })
		for i := range count {
			if err := p.Send(t.Context(), "b", fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range count {
			if got := <-handled; got != fmt.Sprint(i) {
				t.Errorf("message %d is %s", i, got)
			}
		}
		time.Sleep(time.Minute)
		if n := len(handled); n > 0 {
			t.Errorf("%d messages came twice", n)
		}
		if b.Stats().Rejected == 0 {
			t.Error("the inbox was never full")
		}
	})
}

// TestRetryAfterATimeout: what a Timeout inside ended is tried again.
func TestRetryAfterATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		h := middleware.Handle(func(ctx context.Context, _ *fabric.Message) ([]byte, error) {
			if calls++; calls == 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return []byte("x"), nil
		}, middleware.Retry{}, middleware.Timeout{After: 10 * time.Millisecond})
		if data, err := h(t.Context(), &fabric.Message{}); string(data) != "x" || err != nil || calls != 2 {
			t.Errorf("%q, %v after %d calls, want x after 2", data, err, calls)
		}
	})
}

package fabric

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

func TestRequest(t *testing.T) {
	s := startServer(t)
	v := &view{here: map[PID]bool{"slow": true}, reads: make(map[PID]int)}
	a := startNode(t, connect(t, s), "a", v, nil)
	b := startNode(t, connect(t, s), "b", nil, nil)
	ctx := deadline(t)
	go func() {
		_ = b.Handle(t.Context(), 2, func(_ context.Context, m *Message) ([]byte, error) {
			switch string(m.Data) {
			case "fail":
				return nil, errors.New("no such table")
			case "empty":
				return nil, nil
			case "huge":
				return make([]byte, 2<<20), nil
			case "longerror":
				return nil, errors.New(strings.Repeat("x", 1<<20))
			}
			return append([]byte("re: "), m.Data...), nil
		})
	}()
	for range 100 {
		m, err := a.Request(ctx, "b", []byte("x"))
		if err != nil || string(m.Data) != "re: x" || m.From != "b" || m.To != "a" || m.ID == 0 || m.IsRequest() {
			t.Fatalf("Request = %+v, %v", m, err)
		}
	}
	if m, err := a.Request(ctx, "b", []byte("empty")); err != nil || len(m.Data) != 0 {
		t.Errorf("Request = %+v, %v, want an empty answer", m, err)
	}
	if m, err := a.Request(ctx, "b", []byte("huge")); err != nil || len(m.Data) != 2<<20 {
		t.Errorf("Request of a huge answer = %v", err)
	}
	for data, text := range map[string]string{"fail": "no such table", "longerror": "xxx"} {
		_, err := a.Request(ctx, "b", []byte(data))
		if re, ok := errors.AsType[*RemoteError](err); !ok || re.PID != "b" || !strings.Contains(re.Message, text) {
			t.Errorf("Request(%q) = %.100v, want a RemoteError of %q", data, err, text)
		}
	}
	for to, want := range map[PID]error{"nobody": ErrNoPeer, "slow": ErrUnreachable, "joining": ErrUnreachable} {
		if _, err := a.Request(ctx, to, nil); !errors.Is(err, want) {
			t.Errorf("Request to %s = %v, want %v", to, err, want)
		}
	}
	if err := a.Flush(ctx); err != nil {
		t.Errorf("Flush after failed requests = %v, want nil: their callers know", err)
	}
	if n := a.Stats().Undeliverable; n != 0 {
		t.Errorf("Undeliverable = %d, want 0", n)
	}
}

func TestRequestTimesOut(t *testing.T) {
	a, b := pair(t, startServer(t))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := a.Request(ctx, "b", nil)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "to b") {
		t.Errorf("Request = %v, want DeadlineExceeded and the receiver's name", err)
	}
	late := receive(t, b)
	if err := late.Reply(deadline(t), nil); err != nil {
		t.Errorf("late Reply = %v", err)
	}
	cancelled, stop := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	go func() { receive(t, b); stop(cause) }()
	if _, err := a.Request(cancelled, "b", nil); !errors.Is(err, cause) {
		t.Errorf("Request = %v, want the cause of ctx's end", err)
	}
	if err := a.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if s := a.Stats(); s.Invalid != 0 {
		t.Errorf("a late answer was counted as invalid")
	}
	if n := len(a.courier.calls.m); n != 0 {
		t.Errorf("%d calls are left", n)
	}
}

func TestReplyOnce(t *testing.T) {
	a, b := pair(t, startServer(t))
	ctx := deadline(t)
	done := make(chan error, 1)
	go func() {
		m, err := a.Request(ctx, "b", nil)
		if err == nil && string(m.Data) != "first" {
			err = fmt.Errorf("answer %q", m.Data)
		}
		done <- err
	}()
	m := receive(t, b)
	if !m.IsRequest() {
		t.Fatal("IsRequest = false")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := m.Reply(ended, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Reply under an ended context = %v", err)
	}
	if err := m.Reply(ctx, []byte("first")); err != nil {
		t.Errorf("Reply = %v", err)
	}
	if err := m.Reply(ctx, []byte("second")); !errors.Is(err, ErrReplied) {
		t.Errorf("second Reply = %v, want ErrReplied", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConcurrentRequests(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	go func() { _ = b.Handle(t.Context(), 4, echo) }()
	ctx := deadline(t)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 200 {
				data := fmt.Sprint(w, i)
				if m, err := a.Request(ctx, "b", []byte(data)); err != nil || string(m.Data) != data {
					t.Errorf("Request(%s) = %v, %v", data, m, err)
				}
			}
		})
	}
	wg.Wait()
}

// end is how the address of the answer ends.
func (a *asked) end() string { return "." + string(appendID(nil, a.id)) + "-" + a.secret }

// TestForgedAnswers: what is published to class r ends no request, unless it is
// the answer of the one that was asked.
func TestForgedAnswers(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	raw := connect(t, s)
	ctx := deadline(t)
	type result struct {
		m   *Message
		err error
	}
	done := make(chan result, 1)
	go func() { m, err := a.Request(ctx, "b", nil); done <- result{m, err} }()
	m := receive(t, b)
	nonce, id := m.asked().nonce, m.asked().end() // ".<n>-<secret>"
	number, _, _ := strings.Cut(id, "-")
	at := "fab.c1.test.r.a."
	forged := []string{
		"b", "b.x", "b.a" + nonce, "b.a012345" + id, "b.2a" + nonce + id, "b.z" + nonce + id,
		"b.a" + nonce + number, "b.a" + nonce + id + "x", "b.q" + nonce + id, "b.s" + nonce + number,
		"b.f" + nonce + id, "b.n" + nonce + id, "..a" + nonce + id,
		// As an answer, but of another process or with another secret: no request
		// to be found, so it is late, not invalid.
		"c.a" + nonce + id, "_.a" + nonce + id, "b.a" + nonce + number + "-0123456789",
	}
	for _, end := range forged {
		if err := raw.Publish(at+end, []byte("forged")); err != nil {
			t.Fatal(err)
		}
	}
	// A PubAck of JetStream's is aimed by its reply subject; a direct get has headers.
	foreign := nats.NewMsg(at + "b.a" + nonce + id)
	foreign.Header.Set("Nats-Stream", "S")
	if err := raw.PublishMsg(foreign); err != nil {
		t.Fatal(err)
	}
	if err := raw.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := a.Flush(ctx); err != nil { // everything forged has been seen
		t.Fatal(err)
	}
	select {
	case r := <-done:
		t.Fatalf("a forged answer was taken: %+v, %v", r.m, r.err)
	default:
	}
	if err := m.Reply(ctx, []byte("true")); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.err != nil || string(r.m.Data) != "true" {
		t.Errorf("Request = %+v, %v", r.m, r.err)
	}
	if got, want := a.Stats().Invalid, uint64(len(forged)-3); got < want-1 || got > want+1 {
		t.Errorf("Invalid = %d, want about %d", got, want)
	}
}

func TestPermission(t *testing.T) {
	a, b := pair(t, startServer(t))
	ctx := deadline(t)
	done := make(chan error, 1)
	go func() { _, err := a.Request(ctx, "b", nil); done <- err }()
	receive(t, b)
	a.courier.permission("subscribe", "fab.c1.test.u.b.a")
	a.courier.permission("publish", "elsewhere")
	a.courier.permission("publish", "fab.c1.test.u.b.a")
	if err := <-done; !errors.Is(err, ErrPermission) {
		t.Errorf("Request = %v, want ErrPermission", err)
	}
	a.courier.permission("publish", "fab.c1.test.u.b.a")
	if err := a.Flush(ctx); !errors.Is(err, ErrPermission) {
		t.Errorf("Flush = %v, want ErrPermission", err)
	}
}

func TestHandle(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx, cancel := context.WithCancelCause(deadline(t))
	const workers = 4
	var running, most, handled atomic.Int32
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	ended := make(chan error, 1)
	go func() {
		ended <- b.Handle(ctx, workers, func(ctx context.Context, m *Message) ([]byte, error) {
			n := running.Add(1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			if n == workers {
				open() // all are at work at once
			}
			<-gate
			running.Add(-1)
			if m.IsRequest() && string(m.Data) == "self" {
				return []byte("ignored"), m.Reply(ctx, []byte("mine"))
			}
			handled.Add(1)
			return []byte("discarded"), errors.New("logged, or sent")
		})
	}()
	for range workers + 5 {
		if err := a.Send(ctx, "b", nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Request(ctx, "b", nil); err == nil || !strings.Contains(err.Error(), "b answered: logged, or sent") {
		t.Errorf("Request = %v, want the handler's error", err)
	}
	if m, err := a.Request(ctx, "b", []byte("self")); err != nil || string(m.Data) != "mine" {
		t.Errorf("Request = %v, %v, want what the handler itself replied", m, err)
	}
	cause := errors.New("enough")
	cancel(cause)
	if err := <-ended; !errors.Is(err, cause) {
		t.Errorf("Handle = %v, want the cause of ctx's end", err)
	}
	if most.Load() != workers || handled.Load() != workers+6 {
		t.Errorf("%d at once, %d handled, want %d and %d", most.Load(), handled.Load(), workers, workers+6)
	}
}

package fabric

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// members starts nodes on connections of their own; each has all in its view.
func members(t testing.TB, mod func(*courierConfig), pids ...PID) (v *view, all map[PID]*Node) {
	t.Helper()
	s := startServer(t)
	v = &view{here: make(map[PID]bool), reads: make(map[PID]int)}
	all = make(map[PID]*Node)
	for _, pid := range pids {
		v.here[pid] = true
		all[pid] = startNode(t, connect(t, s), pid, v, mod)
	}
	return v, all
}

// answering has n answer with its PID and what it was asked, with an error if that
// is "fail <pid>", not at all if that is "mute <pid>".
func answering(t testing.TB, n *Node) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	me := n.courier.cfg.pid
	go func() {
		defer close(done)
		for m, err := range n.Messages(ctx) {
			switch {
			case err != nil || !m.IsRequest() || string(m.Data) == "mute "+string(me):
			case string(m.Data) == "fail "+string(me):
				n.courier.finish(m, nil, &RemoteError{Code: "E1", Message: "no"})
			default:
				n.courier.finish(m, append([]byte(me+" "), m.Data...), nil)
			}
		}
	}()
}

// heard is what a Gather yielded, sorted: PIDs that answered, then PIDs that failed
// with the error.
type heard struct {
	answered []PID
	failed   map[PID]error
	last     error
}

func gather(t testing.TB, ctx context.Context, n *Node, q Query, text string) (h heard) {
	t.Helper()
	h.failed = make(map[PID]error)
	for m, err := range n.Gather(ctx, q, []byte(text)) {
		if h.last != nil {
			t.Errorf("after the last error %v came %v, %v", h.last, m, err)
		}
		switch u, ok := errors.AsType[Undeliverable](err); {
		case err == nil:
			if string(m.Data) != string(m.From)+" "+text || m.To != n.courier.cfg.pid || m.Topic != q.Topic {
				t.Errorf("answer %+v", m)
			}
			h.answered = append(h.answered, m.From)
		case ok:
			if h.failed[u.To] != nil {
				t.Errorf("%s failed twice: %v, %v", u.To, h.failed[u.To], err)
			}
			h.failed[u.To] = u.Err
		default:
			h.last = err
		}
	}
	slices.Sort(h.answered)
	return h
}

// is checks that exactly pids have answered and that nothing else happened, but for
// what the caller has taken out of h.
func (h heard) is(t testing.TB, pids ...PID) {
	t.Helper()
	if !slices.Equal(h.answered, pids) || len(h.failed) > 0 || h.last != nil {
		t.Errorf("heard %v, want the answers of %v", h, pids)
	}
}

// takeFailed removes and returns the failure of pid.
func (h heard) takeFailed(pid PID) error {
	err := h.failed[pid]
	delete(h.failed, pid)
	return err
}

// untilHeard is a ctx that ends, as at its deadline, when the query that n has open has
// heard of so many.
func untilHeard(t testing.TB, ctx context.Context, n *Node, count int) context.Context {
	t.Helper()
	short, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	t.Cleanup(func() { cancel(nil); <-done })
	go func() {
		defer close(done)
		for len(n.courier.heardOf()) < count && short.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel(context.DeadlineExceeded)
	}()
	return short
}

func TestGather(t *testing.T) {
	v, all := members(t, nil, "a", "b", "c", "d")
	a := all["a"]
	ctx := deadline(t)
	for pid, n := range all {
		if pid != "a" {
			answering(t, n)
		}
	}
	gather(t, ctx, a, Query{}, "x").is(t, "b", "c", "d")
	if h := gather(t, ctx, a, Query{Count: 2}, "x"); len(h.answered) != 2 || h.last != nil {
		t.Errorf("two are enough: %v", h)
	}
	h := gather(t, ctx, a, Query{}, "fail c")
	if e, ok := errors.AsType[*RemoteError](h.takeFailed("c")); !ok || e.Code != "E1" || e.PID != "c" {
		t.Errorf("c fails: %v", e)
	}
	h.is(t, "b", "d")

	gather(t, ctx, a, Query{Silence: 2 * time.Second}, "mute b").is(t, "c", "d")

	h = gather(t, untilHeard(t, ctx, a, 2), a, Query{}, "mute d")
	if err := h.takeFailed("d"); !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("d does not answer: %v", err)
	}
	if !errors.Is(h.last, context.DeadlineExceeded) {
		t.Errorf("ended with %v", h.last)
	}
	h.last = nil
	h.is(t, "b", "c")

	for range a.Gather(ctx, Query{}, nil) {
		break // more come, and nobody listens
	}
	v.change(func() { clear(v.here); v.here["a"] = true })
	before := a.Stats().Sent
	gather(t, ctx, a, Query{}, "x").is(t)
	if after := a.Stats().Sent; after != before {
		t.Errorf("%d messages were sent to nobody", after-before)
	}
	if n := len(a.courier.queries.m); n != 0 {
		t.Errorf("%d queries are kept", n)
	}
}

// TestGatherTopic asks those who have joined.
func TestGatherTopic(t *testing.T) {
	_, all := members(t, nil, "a", "b", "c")
	a := all["a"]
	ctx := deadline(t)
	for _, n := range all {
		answering(t, n)
	}
	if h := gather(t, ctx, a, Query{Topic: "t", Count: 1}, "x"); !errors.Is(h.last, ErrNoReceiver) {
		t.Errorf("nobody has joined: %v", h)
	}
	joinTopic(t, a, "t")
	gather(t, ctx, a, Query{Topic: "t", Silence: 20 * time.Millisecond}, "x").is(t) // itself only
	joinTopic(t, all["b"], "t")
	gather(t, ctx, a, Query{Topic: "t", Count: 1}, "x").is(t, "b")
	gather(t, ctx, a, Query{Topic: "t", Silence: 2 * time.Second}, "x").is(t, "b")
	joinTopic(t, all["c"], "t")
	gather(t, ctx, a, Query{Topic: "t", Count: 2}, "x").is(t, "b", "c")
	h := gather(t, untilHeard(t, ctx, a, 2), a, Query{Topic: "t", Count: 3}, "x")
	if !errors.Is(h.last, context.DeadlineExceeded) || len(h.answered) != 2 || len(h.failed) != 0 {
		t.Errorf("a third is awaited: %v", h)
	}
}

// TestGatherGone: who leaves the view, or comes back as another incarnation, is not
// waited for.
func TestGatherGone(t *testing.T) {
	v, all := members(t, nil, "a", "b", "c", "d", "e")
	a := all["a"]
	ctx := deadline(t)
	answering(t, all["b"])
	got := make(chan heard, 1)
	go func() { got <- gather(t, ctx, a, Query{}, "x") }()
	receive(t, all["c"])
	m := receive(t, all["d"])
	receive(t, all["e"])
	v.change(func() { v.here["f"] = true }) // somebody comes
	v.change(func() { delete(v.here, "c") })
	v.change(func() { v.lives = map[PID]uint64{"e": 2} })
	if err := m.Reply(ctx, []byte("d x")); err != nil {
		t.Fatal(err)
	}
	h := <-got
	for _, pid := range []PID{"c", "e"} {
		if err := h.takeFailed(pid); !errors.Is(err, ErrNoPeer) {
			t.Errorf("%s is gone: %v", pid, err)
		}
	}
	h.is(t, "b", "d")
}

// TestGatherAnsweredAndLeft: an answer that came before the news that its sender has
// left counts.
func TestGatherAnsweredAndLeft(t *testing.T) {
	v, all := members(t, nil, "a", "b")
	ctx := deadline(t)
	for range 200 {
		got := make(chan heard, 1)
		go func() { got <- gather(t, ctx, all["a"], Query{}, "x") }()
		m := receive(t, all["b"])
		if err := m.Reply(ctx, []byte("b x")); err != nil {
			t.Fatal(err)
		}
		if err := all["b"].courier.nc.Flush(); err != nil {
			t.Fatal(err)
		}
		// What the server had before it answers this has been read from the socket.
		if err := all["a"].courier.nc.Flush(); err != nil {
			t.Fatal(err)
		}
		v.change(func() { delete(v.here, "b") })
		(<-got).is(t, "b")
		v.change(func() { v.here["b"] = true })
	}
}

// TestGatherFull: a full inbox says so, and so do answers that find no room.
func TestGatherFull(t *testing.T) {
	_, all := members(t, func(c *courierConfig) {
		c.inbox = Inbox{Messages: 10, Bytes: 1000}
	}, "a", "b", "c", "d")
	a := all["a"]
	ctx := deadline(t)
	answering(t, all["c"])
	answering(t, all["d"])
	for range 10 {
		if err := a.Send(ctx, "b", nil); err != nil {
			t.Fatal(err)
		}
	}
	h := gather(t, ctx, a, Query{}, "x")
	if err := h.takeFailed("b"); !errors.Is(err, ErrInboxFull) {
		t.Errorf("b is full: %v", err)
	}
	h.is(t, "c", "d")

	// Nothing is read until all have answered: there is room for one.
	text := strings.Repeat("x", 600)
	answers, full := 0, 0
	for range 10 {
		receive(t, all["b"])
	}
	answering(t, all["b"])
	for m, err := range a.Gather(ctx, Query{}, []byte(text)) {
		if answers+full == 0 {
			for len(a.courier.heardOf()) < 3 && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		}
		switch {
		case err == nil && len(m.Data) > 600:
			answers++
		case errors.Is(err, ErrInboxFull):
			full++
		default:
			t.Errorf("gathered %v, %v", m, err)
		}
	}
	if answers < 1 || answers+full != 3 || full < 1 {
		t.Errorf("%d answers, %d had no room, want 3 together", answers, full)
	}
	if st := a.Stats(); st.Rejected != uint64(full) {
		t.Errorf("Rejected = %d, want %d", st.Rejected, full)
	}
}

// TestGatherMany: the bounds of an inbox are those of the answers that wait, not of who
// answers.
func TestGatherMany(t *testing.T) {
	others := []PID{"b", "c", "d", "e"}
	_, all := members(t, func(c *courierConfig) { c.inbox = Inbox{Messages: 2} }, append(others, "a")...)
	a := all["a"]
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	reply := func(pid PID) {
		m, err := all[pid].Receive(ctx)
		if err == nil {
			err = m.Reply(ctx, nil)
		}
		if err != nil {
			t.Errorf("reply of %s: %v", pid, err)
		}
	}
	read := make(chan struct{})
	go func() { // each when the one before is read
		for _, pid := range others {
			reply(pid)
			<-read
		}
	}()
	var answered []PID
	for m, err := range a.Gather(ctx, Query{}, nil) {
		if err != nil {
			t.Fatalf("%v after the answers of %v", err, answered)
		}
		answered = append(answered, m.From)
		read <- struct{}{}
	}
	if !slices.Equal(answered, others) {
		t.Errorf("answers of %v, want %v", answered, others)
	}

	// Nothing is read until all have answered: there is room for two.
	go func() {
		for _, pid := range others {
			reply(pid)
		}
	}()
	answers, full := 0, 0
	for _, err := range a.Gather(ctx, Query{}, nil) {
		if answers+full == 0 {
			for len(a.courier.heardOf()) < len(others) && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		}
		switch {
		case err == nil:
			answers++
		case errors.Is(err, ErrInboxFull):
			full++
		default:
			t.Errorf("gathered %v", err)
		}
	}
	if answers < 2 || answers > 3 || answers+full != len(others) {
		t.Errorf("%d answers, %d had no room, want %d together", answers, full, len(others))
	}
	if st := a.Stats(); st.Rejected != uint64(full) {
		t.Errorf("Rejected = %d, want %d", st.Rejected, full)
	}
}

// heardOf returns of whom the one query that is open has heard.
func (c *courier) heardOf() (known map[PID]bool) {
	c.queries.mu.Lock()
	defer c.queries.mu.Unlock()
	for _, q := range c.queries.m {
		q.mu.Lock()
		known = maps.Clone(q.known)
		q.mu.Unlock()
	}
	return known
}

// TestGatherNobody: the server knows nobody who takes broadcasts.
func TestGatherNobody(t *testing.T) {
	s := startServer(t)
	v := &view{here: map[PID]bool{"b": true, "c": true}, reads: make(map[PID]int)}
	p := startNode(t, connect(t, s), "p", v, func(c *courierConfig) { c.passive = true })
	h := gather(t, deadline(t), p, Query{}, "x")
	for _, pid := range []PID{"b", "c"} {
		if err := h.takeFailed(pid); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: %v", pid, err)
		}
	}
	h.is(t)
}

func TestGatherErrors(t *testing.T) {
	_, all := members(t, nil, "a", "b")
	a := all["a"]
	ctx := deadline(t)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	for _, test := range []struct {
		ctx  context.Context
		q    Query
		want func(error) bool
	}{
		{ctx, Query{Topic: "t"}, func(err error) bool { return errors.Is(err, ErrConfig) }},
		{ctx, Query{Count: -1}, func(err error) bool { return errors.Is(err, ErrConfig) }},
		{ctx, Query{Silence: -1}, func(err error) bool { return errors.Is(err, ErrConfig) }},
		{ctx, Query{Topic: "a.b", Count: 1}, isNameError},
		{ctx, Query{Type: "a.b"}, isNameError},
		{ctx, Query{Header: nats.Header{"Nats-X": {"1"}}}, isNameError},
		{canceled, Query{}, func(err error) bool { return errors.Is(err, context.Canceled) }},
	} {
		if h := gather(t, test.ctx, a, test.q, "x"); !test.want(h.last) {
			t.Errorf("Gather(%+v) ended with %v", test.q, h.last)
		}
	}
	done := make(chan heard, 1)
	go func() { done <- gather(t, ctx, a, Query{}, "x") }()
	receive(t, all["b"])
	a.courier.close()
	h := <-done
	if err := h.takeFailed("b"); !errors.Is(err, ErrUnknownOutcome) || !errors.Is(h.last, ErrClosed) {
		t.Errorf("closed: %v, %v", err, h.last)
	}
	if h := gather(t, ctx, a, Query{}, "x"); !errors.Is(h.last, ErrClosed) {
		t.Errorf("closed: %v", h.last)
	}
}

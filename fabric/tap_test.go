package fabric

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

// tapping collects what n taps until stop is called.
func tapping(t *testing.T, n *Node, classes ...string) (seen <-chan Traffic, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(deadline(t))
	ch := make(chan Traffic, 100)
	done := make(chan error, 1)
	before := n.courier.nc.NumSubscriptions()
	go func() {
		for tr, err := range n.Tap(ctx, classes...) {
			if err != nil {
				done <- err
				return
			}
			ch <- tr
		}
		done <- nil
	}()
	for n.courier.nc.NumSubscriptions() < before+max(len(classes), 1) && ctx.Err() == nil {
		if err := n.courier.nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.courier.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return ch, func() error { cancel(); return <-done }
}

// brief is a Traffic in one word.
func brief(tr Traffic) string {
	s := tr.Class + " " + tr.Kind + " " + string(tr.From) + ">" + string(tr.To) + " " + tr.Name + " " + string(tr.Data)
	if tr.Invalid != "" {
		s += " !" + tr.Invalid
	}
	return strings.Join(strings.Fields(s), " ")
}

func TestTap(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	p := startNode(t, connect(t, s), "p", nil, func(c *courierConfig) { c.passive = true })
	ctx := deadline(t)
	joinTopic(t, b, "news")
	serve(t, b, "mail", 1, echo)
	seen, stop := tapping(t, p, "u", "b", "g", "q", "r", "y", "kv")
	raw := connect(t, s)
	next := func() string {
		t.Helper()
		select {
		case tr := <-seen:
			if tr.Missed != 0 {
				t.Errorf("%d missed", tr.Missed)
			}
			return brief(tr)
		case <-ctx.Done():
			t.Fatal("nothing is seen")
			return ""
		}
	}
	check := func(err error, want ...string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for range want {
			got = append(got, next())
		}
		slices.Sort(got) // the order of two nodes' messages is the server's
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("seen %q, want %q", got, want)
		}
	}
	check(a.Send(ctx, "b", []byte("x")), "u send a>b x")
	check(a.Broadcast(ctx, []byte("x")), "b broadcast a>* x")
	check(a.Publish(ctx, "news", []byte("x")), "g broadcast a>* news x")
	_, err := a.Anycast(ctx, "mail", []byte("x"))
	check(err, "q request a> mail x", "r answer b>a x")
	check(a.courier.signal("hb", []byte("x")), "y signal a> hb x")
	check(ack(ctx, a, Message{To: "b"}), "u acked a>b", "r ack b>a")
	check(raw.Publish("fab.c1.test.u.b.ext", []byte("x")), "u external ext>b x")
	check(raw.PublishRequest("fab.c1.test.q.mail.ext", "_INBOX.x", []byte("x")), "q external request ext> mail x")
	check(raw.PublishMsg(&nats.Msg{
		Subject: "fab.c1.test.kv.s.a", Data: []byte("x"), Header: nats.Header{"Nats-Sequence": {"7"}, "Nats-Stream": {"S"}},
	}), "kv record > s.a x")
	check(raw.Publish("fab.c1.test.u.b.a", []byte("x")), "u a>b x !its reply subject has no tag of its sender's")
	check(raw.PublishRequest("fab.c1.test.g.news.a", atR+"a._.s012345.1", nil), "g a>* news !it is of a kind that does not belong there")
	check(raw.Publish("fab.c1.test.r.b.a.x", nil), "r a>b !its subject has no tag")
	check(raw.PublishRequest("fab.c1.test.u.b.a", atR+"a.b.+012345.7-0123456789-9", []byte("x")), "u part a>b x")
	steps := series{}
	steps.add(1)
	steps.add(2)
	frame := appendItem(appendItem(nil, &item{kind: kindBroadcast, id: 1, data: []byte("x")}), &item{kind: kindBroadcast, id: 2, data: []byte("y")})
	reply := atR + "a._." + string(tag{kind: kindMulti, nonce: "012345", id: 1, steps: string(steps.appendSteps(nil))}.append(nil))
	check(raw.PublishRequest("fab.c1.test.b.a", reply, frame), "b broadcast a>* x", "b broadcast a>* y")
	check(raw.PublishRequest("fab.c1.test.b.a", reply, frame[:len(frame)-1]), "b broadcast a>* x", "b frame a>* !its frame is malformed")
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if err := p.courier.nc.Flush(); err != nil { // the server knows
		t.Fatal(err)
	}
	if err := a.Send(ctx, "nobody", nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Flush(ctx); !errors.Is(err, ErrNoPeer) {
		t.Errorf("the tap has ended: Flush = %v, want ErrNoPeer", err)
	}
}

// TestTapDefault: without classes, the server's word about who is not there still comes.
func TestTapDefault(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	seen, stop := tapping(t, b)
	if err := a.Broadcast(ctx, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if tr := <-seen; tr.Class != "b" || tr.ID != 1 {
		t.Errorf("seen %+v", tr)
	}
	if _, err := a.Request(ctx, "nobody", nil); !errors.Is(err, ErrNoPeer) {
		t.Errorf("Request = %v, want ErrNoPeer", err)
	}
	if _, err := a.Anycast(ctx, "nothing", nil); !errors.Is(err, ErrNoReceiver) {
		t.Errorf("Anycast = %v, want ErrNoReceiver", err)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	for _, err := range b.Tap(ctx, "x") {
		if !isNameError(err) {
			t.Errorf("class x: %v", err)
		}
	}
	b.courier.close()
	for _, err := range b.Tap(ctx) {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	}
}

// TestTapSlow: what a slow reader misses is counted.
func TestTapSlow(t *testing.T) {
	s := startServer(t)
	a := startNode(t, connect(t, s), "a", nil, func(c *courierConfig) { c.noBatch = true })
	quiet := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	b := startNode(t, connect(t, s, quiet), "b", nil, nil)
	ctx := deadline(t)
	subs := b.courier.nc.NumSubscriptions()
	ch := make(chan Traffic) // what is not taken from it waits
	go func() {
		defer close(ch)
		for tr, err := range b.Tap(ctx, "b") {
			if err == nil {
				ch <- tr
			}
			if err != nil || tr.ID == 2*tapCap+1 {
				return
			}
		}
	}()
	publish := func(n int) {
		for range n {
			if err := a.Broadcast(ctx, nil); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range []*Node{a, b} { // it is all here, or dropped
			if err := n.courier.nc.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for b.courier.nc.NumSubscriptions() == subs && ctx.Err() == nil {
		publish(0)
	}
	publish(0)
	publish(2 * tapCap)
	seen, missed := uint64(0), uint64(0)
	for tr := range ch {
		missed += tr.Missed
		if seen++; seen+missed == 2*tapCap {
			publish(1)
		}
	}
	if missed == 0 || seen+missed != 2*tapCap+1 {
		t.Errorf("%d seen, %d missed, of %d", seen, missed, 2*tapCap+1)
	}
}

// newTestCourier returns a courier of a node b that has no connection.
func newTestCourier() *courier {
	c := &courier{subj: newSubjects("c1", "test", "b"), cfg: courierConfig{pid: "b"}, nonce: "012345"}
	c.log = slog.New(slog.DiscardHandler)
	c.calls.init()
	c.flushes.init()
	c.inbox = newInbox(Inbox{})
	c.links.init(c)
	c.queries.init(c)
	c.clerk.init(c)
	return c
}

// FuzzTraffic: whatever is published, it is shown as what it is, and a receiver takes
// it if and only if it is not shown as invalid.
func FuzzTraffic(f *testing.F) {
	const p = "fab.c1.test."
	f.Add(p+"u.b.a", p+"r.a.b.q012345.1-0123456789", "", []byte("x"))
	f.Add(p+"b.a", p+"r.a._.b012345.7", "", []byte("x"))
	f.Add(p+"g.news.a", p+"r.a._.b012345.7", "", []byte("x"))
	f.Add(p+"q.mail.a", p+"r.a._.q012345.1-0123456789", "", []byte("x"))
	f.Add(p+"q.mail.ext", "", "", []byte("x"))
	f.Add(p+"u.b.ext", "_INBOX.x", "Nats-Stream", []byte("x"))
	f.Add(p+"r.b.a.a012345.1-0123456789", "", "", []byte("x"))
	f.Add(p+"y.hb.a", p+"r.a._.y012345.7", "", []byte("x"))
	f.Add(p+"kv.s.a", "", "Nats-Sequence", []byte("x"))
	f.Add(p+"u.b.a", p+"r.a.b.g012345.1-0123456789", "", []byte("q\x00\x00\x010123456789\x01xc\x00\x00\x02abcdefghij\x01y"))
	f.Add(p+"r.b.a.g012345.1-0123456789", "", "", []byte("a\x00\x00\x010123456789\x01xk\x00\x00\x02abcdefghij\x00"))
	f.Add(p+"b.a", p+"r.a._.m012345.1-1", "", []byte("b\x00\x00\x01\x01xb\x00\x00\x02\x01y"))
	f.Fuzz(func(t *testing.T, subject, reply, key string, data []byte) {
		s := newSubjects("c1", "test", "p")
		m := &nats.Msg{Subject: subject, Reply: reply, Data: data}
		if key != "" {
			m.Header = nats.Header{key: {"1"}}
		}
		all := s.traffic(m)
		if len(all) == 0 && len(data) > 0 {
			t.Fatal("nothing is shown")
		}
		size := 0
		for _, tr := range all {
			size += len(tr.Data)
			if tr.Kind == "" && tr.Invalid == "" {
				t.Errorf("shown as nothing: %+v", tr)
			}
		}
		if size > len(data) {
			t.Errorf("%d bytes are shown as %d", len(data), size)
		}
		switch {
		case strings.HasPrefix(subject, p+"u.b."):
		case (strings.HasPrefix(subject, p+"b.") || strings.HasPrefix(subject, p+"g.")) && !strings.HasSuffix(subject, ".b"):
		default:
			return // b does not receive it
		}
		at := strings.TrimPrefix(reply, p+"r.")
		if strings.Contains(at, ".r") || strings.Contains(at, ".l") || strings.Contains(at, ".p") || strings.Contains(at, ".+") {
			return // whether those are taken depends on the link
		}
		c := newTestCourier()
		d := decoder{c: c}
		d.decode(nil, m)
		invalid := slices.ContainsFunc(all, func(tr Traffic) bool { return tr.Invalid != "" })
		if got := c.invalid.Load() > 0; got != invalid {
			t.Errorf("%q %q: shown as %+v, dropped: %v", subject, reply, all, got)
		}
	})
}

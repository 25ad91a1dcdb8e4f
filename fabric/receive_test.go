package fabric

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TestExternal: a plain NATS client publishes and requests.
func TestExternal(t *testing.T) {
	s := startServer(t)
	b := startNode(t, connect(t, s), "b", nil, nil)
	raw := connect(t, s)
	ctx := deadline(t)
	const subject = "fab.c1.test.u.b.ext"
	if err := raw.Publish(subject, []byte("hi")); err != nil {
		t.Fatal(err)
	}
	m := receive(t, b)
	if m.From != External || m.To != "b" || m.ID != 0 || m.IsRequest() || string(m.Data) != "hi" {
		t.Errorf("received %+v", m)
	}
	for _, reply := range []string{"$JS.API.STREAM.DELETE.S", "fab.c1.test.r.a.b.a012345.1", "foo", "_INBOX", "_INBOXES.x"} {
		if err := raw.PublishRequest(subject, reply, nil); err != nil {
			t.Fatal(err)
		}
		if m := receive(t, b); m.IsRequest() || !errors.Is(m.Reply(ctx, nil), ErrNotRequest) {
			t.Errorf("reply address %q: IsRequest = true", reply)
		}
	}
	go func() {
		_ = b.Handle(t.Context(), 1, func(_ context.Context, m *Message) ([]byte, error) {
			if len(m.Data) == 0 {
				return nil, errors.New("empty")
			}
			return m.Data, nil
		})
	}()
	if m, err := raw.RequestWithContext(ctx, subject, []byte("q")); err != nil || string(m.Data) != "q" {
		t.Errorf("nats request = %v, %v", m, err)
	}
	if m, err := raw.RequestWithContext(ctx, subject, nil); err != nil || m.Header.Get("Nats-Service-Error") != "empty" {
		t.Errorf("nats request = %v, %v, want a service error", m, err)
	}
}

const (
	toB  = "fab.c1.test.u.b."
	atR  = "fab.c1.test.r."
	asks = ".q012345.1-0123456789"
)

// invalid are messages that a node b must drop.
var invalid = []nats.Msg{
	{Subject: toB + "a"},
	{Subject: toB + "a", Reply: "spied.x"},
	{Subject: toB + "a", Reply: "_INBOX.x"},
	{Subject: toB + "a", Reply: "$JS.API.STREAM.DELETE.S"},
	{Subject: toB + "a", Reply: atR + "victim.b" + asks},
	{Subject: toB + "a", Reply: atR + "victim.a" + asks},
	{Subject: toB + "a", Reply: atR + "a.victim" + asks},
	{Subject: toB + "a", Reply: atR + "a._" + asks},
	{Subject: toB + "a", Reply: atR + "a.b" + ".2q012345.1-0123456789"},
	{Subject: toB + "a", Reply: atR + "a.b" + ".b012345.1"},
	{Subject: toB + "a", Reply: atR + "a.b" + ".s012345.0"},
	{Subject: toB + "a", Reply: atR + "a.b" + ".s012345.LygHa16AHYG"},
	{Subject: toB + "a", Reply: atR + "a.b" + ".s012345.1.x"},
	{Subject: toB + "é", Reply: atR + "é.b" + ".s012345.1"},
	{Subject: "fab.c1.test.b.a"},
	{Subject: "fab.c1.test.b.ext"},
	{Subject: "fab.c1.test.b.a", Reply: atR + "a._" + ".s012345.1"},
	{Subject: "fab.c1.test.b.a", Reply: atR + "a._" + ".c012345.1-0123456789"}, // nobody awaits everyone's acceptance
	{Subject: "fab.c1.test.b.a", Reply: atR + "a.b" + asks},
	{Subject: toB + "a", Reply: atR + "a.b" + ".s012345.1", Header: nats.Header{"Nats-Stream": {"S"}}},
	{Subject: toB + "a", Reply: atR + "a.b" + ".s012345.1", Header: nats.Header{"Nats-Sequence": {"1"}}},
	{Subject: toB + "a", Reply: atR + "a.b" + ".s012345.1", Header: nats.Header{"Status": {"503"}}},
	{Subject: toB + "ext", Header: nats.Header{"Nats-Subject": {"x"}}},
}

// TestInvalid: what has no valid tag, or is JetStream's, is dropped and counted,
// and nothing is published to where its reply subject points.
func TestInvalid(t *testing.T) {
	s := startServer(t)
	b := startNode(t, connect(t, s), "b", nil, nil)
	go func() { _ = b.Handle(t.Context(), 1, echo) }()
	raw := connect(t, s)
	spied, err := raw.SubscribeSync("spied.>")
	if err != nil {
		t.Fatal(err)
	}
	spiedR, err := raw.SubscribeSync("fab.c1.test.r.victim.>")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range invalid {
		if err := raw.PublishMsg(&m); err != nil {
			t.Fatal(err)
		}
	}
	// Aim an acknowledgement of JetStream's at b, as if from a.
	js, err := jetstream.New(raw)
	if err != nil {
		t.Fatal(err)
	}
	ctx := deadline(t)
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if err := raw.PublishRequest("s", toB+"a", nil); err != nil {
		t.Fatal(err)
	}
	want := uint64(len(invalid) + 1)
	for b.Stats().Invalid < want && ctx.Err() == nil { // the acknowledgement takes its time
		if err := raw.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if s := b.Stats(); s != (Stats{Invalid: want}) {
		t.Errorf("stats = %+v, want %d invalid and nothing else", s, want)
	}
	if _, err := js.Stream(ctx, "S"); err != nil {
		t.Errorf("the stream: %v", err)
	}
	for _, sub := range []*nats.Subscription{spied, spiedR} {
		if n, _, err := sub.Pending(); err != nil || n != 0 {
			t.Errorf("%d messages to %s, %v", n, sub.Subject, err)
		}
	}
}

// TestInboxFull: both bounds; the sender of a request is told.
func TestInboxFull(t *testing.T) {
	s := startServer(t)
	a := startNode(t, connect(t, s), "a", nil, nil)
	ctx := deadline(t)
	for name, box := range map[string]Inbox{"messages": {Messages: 10}, "bytes": {Bytes: 1005}} {
		b := startNode(t, connect(t, s), "b", nil, func(cfg *courierConfig) { cfg.inbox = box })
		for range 25 {
			if err := a.Send(ctx, "b", make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.Request(ctx, "b", make([]byte, 100)); !errors.Is(err, ErrInboxFull) {
			t.Errorf("%s: Request = %v, want ErrInboxFull", name, err)
		}
		raw := connect(t, s)
		if m, err := raw.RequestWithContext(ctx, "fab.c1.test.u.b.ext", make([]byte, 100)); err != nil ||
			m.Header.Get("Nats-Service-Error") != ErrInboxFull.Error() {
			t.Errorf("%s: nats request = %v, %v, want a service error", name, m, err)
		}
		if err := b.Send(ctx, "b", make([]byte, 100)); err != nil { // to itself: the same rule
			t.Errorf("%s: Send to self = %v", name, err)
		}
		if s := b.Stats(); s.Received != 10 || s.Rejected != 18 {
			t.Errorf("%s: %+v, want 10 received, 18 rejected", name, s)
		}
		for want := uint64(1); want <= 10; want++ {
			receive(t, b)
		}
		if err := a.Send(ctx, "b", make([]byte, 100)); err != nil { // there is room again
			t.Fatal(err)
		}
		receive(t, b)
		b.courier.close()
	}
}

// TestBurst sends much more than a receiver that does not receive can hold: every
// message is either in the inbox or counted as rejected.
func TestBurst(t *testing.T) {
	const senders, each = 4, 50_000
	s := startServer(t)
	b := startNode(t, connect(t, s), "b", nil, nil)
	ctx := deadline(t)
	var wg sync.WaitGroup
	for i := range senders {
		a := startNode(t, connect(t, s), PID(fmt.Sprint("a", i)), nil, nil)
		wg.Go(func() {
			for range each {
				if err := a.Send(ctx, "b", make([]byte, 16)); err != nil {
					t.Errorf("Send: %v", err)
					return
				}
			}
			// b says what it refused; what nats.go drops, nobody would.
			if err := a.Flush(ctx); err != nil && !errors.Is(err, ErrInboxFull) {
				t.Errorf("Flush: %v", err)
			}
		})
	}
	wg.Wait()
	if err := b.courier.nc.Flush(); err != nil { // what the server had for b is read
		t.Fatal(err)
	}
	st := b.Stats()
	for ; st.Received+st.Rejected < senders*each && ctx.Err() == nil; st = b.Stats() {
		_ = b.courier.nc.Flush() // dispatch is behind
	}
	if st.Received != DefaultInboxMessages || st.Rejected != senders*each-DefaultInboxMessages {
		t.Errorf("%+v, want %d received, the others rejected", st, DefaultInboxMessages)
	}
	if n := b.courier.channelDrops(); n != 0 {
		t.Errorf("nats.go dropped %d", n)
	}
	got := make(map[PID]uint64)
	for range st.Received {
		m := receive1(t, ctx, b)
		if m.ID <= got[m.From] {
			t.Fatalf("message %d from %s after %d", m.ID, m.From, got[m.From])
		}
		got[m.From] = m.ID
	}
}

func receive1(t *testing.T, ctx context.Context, n *Node) *Message {
	t.Helper()
	m, err := n.Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestOneWay is ClusterTalk's load: 10 000 messages, each once and in order.
func TestOneWay(t *testing.T) {
	a, b := pair(t, startServer(t))
	ctx := deadline(t)
	for range 10_000 {
		if err := a.Send(ctx, "b", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for want := uint64(1); want <= 10_000; want++ {
		if m := receive1(t, ctx, b); m.ID != want {
			t.Fatalf("message %d came where %d was due", m.ID, want)
		}
	}
	if err := a.Flush(ctx); err != nil {
		t.Error(err)
	}
}

// TestReceivers: each message goes to one of those who receive.
func TestReceivers(t *testing.T) {
	const total, receivers = 20_000, 8
	a, b := pair(t, startServer(t))
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	var mu sync.Mutex
	seen := make(map[uint64]int)
	var wg sync.WaitGroup
	for i := range receivers {
		wg.Go(func() {
			for {
				short, stop := context.WithTimeout(ctx, time.Duration(i+1)*time.Millisecond)
				m, err := b.Receive(short)
				stop()
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					continue
				}
				mu.Lock()
				if seen[m.ID]++; len(seen) == total {
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	for range total {
		if err := a.Send(ctx, "b", nil); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	for id, n := range seen {
		if n != 1 {
			t.Errorf("message %d was received %d times", id, n)
		}
	}
	if len(seen) != total {
		t.Errorf("%d received, want %d", len(seen), total)
	}
}

// TestMessageIsSmall: more than half of what is allocated for a gathered message of a few bytes is
// the Message.
func TestMessageIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Message{}); size > 128 || slabLen < 4 {
		t.Errorf("a Message has %d bytes, %d share an allocation", size, slabLen)
	}
}

// TestEpochOfEach: when messages of two lives of a PID come mixed, in whatever form, each has the
// epoch of its own.
func TestEpochOfEach(t *testing.T) {
	const p = "fab.c1.test."
	d := decoder{c: newTestCourier()}
	frame := appendItem(appendItem(nil, &item{kind: kindSend, id: 3}), &item{kind: kindSend, id: 4})
	forms := map[string]*nats.Msg{
		"bare":  {Subject: p + "u.b.a", Reply: p + "r.a.b.sLIFE.1"},
		"typed": {Subject: p + "u.b.a", Reply: p + "r.a.b.sLIFEt.2"},
		"frame": {Subject: p + "u.b.a", Reply: p + "r.a.b.mLIFE.3-", Data: frame},
		"asks":  {Subject: p + "u.b.a", Reply: p + "r.a.b.cLIFE.5-0123456789"},
	}
	come := func(form, life string) {
		t.Helper()
		m := *forms[form]
		m.Reply = strings.Replace(m.Reply, "LIFE", life, 1)
		got := d.decode(nil, &m)
		if len(got) == 0 {
			t.Fatalf("%s of %s: dropped", form, life)
		}
		for _, got := range got {
			if got.Epoch() != life {
				t.Errorf("%s of %s: epoch %s", form, life, got.Epoch())
			}
		}
	}
	for first := range forms {
		for second := range forms {
			for third := range forms {
				come(first, "aaaaaa")
				come(second, "bbbbbb")
				come(third, "aaaaaa")
			}
		}
	}
}

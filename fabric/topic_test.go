package fabric

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// startSecured starts a server with a user for each node, who may do what a node of
// that name must, but not publish to or subscribe to what is denied.
func startSecured(t testing.TB, denied []string, pids ...string) *server.Server {
	t.Helper()
	opts := &server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true}
	for _, pid := range pids {
		p := "fab.c1.test."
		opts.Users = append(opts.Users, &server.User{Username: pid, Password: pid, Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{
				Allow: []string{p + "u.*." + pid, p + "b." + pid, p + "g.*." + pid, p + "q.*." + pid, p + "r.*." + pid + ".>"},
				Deny:  denied,
			},
			Subscribe: &server.SubjectPermission{
				Allow: []string{p + "u." + pid + ".*", p + "b.*", p + "g.*.*", p + "q.*.* " + p + "*", p + "r." + pid + ".>"},
				Deny:  denied,
			},
		}})
	}
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not accept connections")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

// startAs starts the messaging of a node that hears of its permissions as one that
// joined does.
func startAs(t testing.TB, s *server.Server, pid PID, v *view) *Node {
	t.Helper()
	l := &link{denied: map[string]denial{}, owned: true}
	nc := connect(t, s, nats.UserInfo(string(pid), string(pid)), nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
		l.asyncError(sub, err)
	}))
	l.nc = nc
	n := startNode(t, nc, pid, v, func(c *courierConfig) { c.refused = l.denies })
	l.tell(func(err error, _ *nats.Subscription) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			n.courier.permission(violation(err))
		}
	})
	return n
}

func joinTopic(t testing.TB, n *Node, name string) *Topic {
	t.Helper()
	topic, err := n.JoinTopic(deadline(t), name)
	if err != nil {
		t.Fatalf("JoinTopic: %v", err)
	}
	t.Cleanup(topic.Leave)
	return topic
}

func publish(t testing.TB, n *Node, topic, text string) {
	t.Helper()
	if err := n.Publish(deadline(t), topic, []byte(text)); err != nil {
		t.Fatalf("Publish: %v", err)
	}
	if err := n.Flush(deadline(t)); err != nil {
		t.Fatalf("Flush: %v", err)
	}
}

func TestTopic(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	subs := len(b.courier.subs)
	joinTopic(t, a, "news")
	first := joinTopic(t, b, "news")
	if first.Name() != "news" {
		t.Errorf("Name = %q", first.Name())
	}
	second := joinTopic(t, b, "news")

	publish(t, a, "news", "1")
	publish(t, a, "olds", "nobody has joined")
	if m := receive(t, b); m.From != "a" || m.To != Everyone || m.Topic != "news" || m.ID != 1 || m.IsRequest() || string(m.Data) != "1" {
		t.Errorf("received %+v", m)
	}
	// It came once, though joined twice; and what follows is next.
	first.Leave()
	first.Leave() // does nothing
	h := nats.Header{"K": {"v"}}
	if err := a.SendMsg(ctx, &Message{Topic: "news", To: Everyone, ID: 77, Type: "T", Header: h, Data: []byte("2")}); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, b); m.ID != 77 || m.Type != "T" || m.Topic != "news" || m.Header.Get("K") != "v" || string(m.Data) != "2" {
		t.Errorf("received %+v", m)
	}
	second.Leave()
	publish(t, a, "news", "3")
	if err := a.Send(ctx, "b", []byte("direct")); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, b); m.Topic != "" || string(m.Data) != "direct" {
		t.Errorf("received %+v after the last left", m)
	}
	joinTopic(t, b, "news")
	publish(t, a, "news", "4")
	if m := receive(t, b); string(m.Data) != "4" {
		t.Errorf("received %+v", m)
	}
	if st := a.Stats(); st.Received != 0 || st.Invalid != 0 {
		t.Errorf("the publisher has %+v, its own messages do not come back", st)
	}
	if n := len(b.courier.subs); n != subs+1 {
		t.Errorf("%d subscriptions are kept, want %d and the topic", n, subs)
	}
}

// TestTopicOrder: what one node sends in whatever way arrives in that order, with
// nothing missing.
func TestTopicOrder(t *testing.T) {
	s := startServer(t)
	a, b := pair(t, s)
	ctx := deadline(t)
	topics := []string{"x", "y", "z"}
	for _, name := range topics {
		joinTopic(t, b, name)
	}
	const n = 30_000
	sent := make(chan error, 1)
	go func() {
		for i := range n {
			m := Message{Data: fmt.Append(nil, i)}
			switch i % 5 {
			case 0:
				m.To = "b"
			case 1:
				m.To = Everyone
			default:
				m.Topic = topics[i%len(topics)]
			}
			if err := a.SendMsg(ctx, &m); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for i := range n {
		m, err := b.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if m.ID != uint64(i+1) || string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("received message %d as the %dth: %+v", m.ID, i+1, m)
		}
		if topic := topics[i%len(topics)]; i%5 > 1 && m.Topic != topic || i%5 <= 1 && m.Topic != "" {
			t.Fatalf("message %d has topic %q", m.ID, m.Topic)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// TestTopicReconnect: a topic stays joined.
func TestTopicReconnect(t *testing.T) {
	s := startServer(t)
	back := make(chan struct{}, 1)
	nc := connect(t, s, nats.ReconnectHandler(func(*nats.Conn) { back <- struct{}{} }), nats.ReconnectWait(time.Millisecond))
	b := startNode(t, nc, "b", nil, nil)
	a := startNode(t, connect(t, s), "a", nil, nil)
	joinTopic(t, b, "news")
	left := joinTopic(t, b, "left")
	if err := nc.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	left.Leave()
	<-back
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	publish(t, a, "left", "1")
	publish(t, a, "news", "2")
	if m := receive(t, b); string(m.Data) != "2" {
		t.Errorf("received %+v", m)
	}
}

func TestTopicErrors(t *testing.T) {
	s := startServer(t)
	a, _ := pair(t, s)
	ctx := deadline(t)
	for _, name := range []string{"", "a.b", "*", ">", "a b", "-a"} {
		if _, err := a.JoinTopic(ctx, name); !isNameError(err) {
			t.Errorf("JoinTopic(%q) = %v", name, err)
		}
		if err := a.Publish(ctx, name, nil); !isNameError(err) {
			t.Errorf("Publish(%q) = %v", name, err)
		}
	}
	if err := a.SendMsg(ctx, &Message{To: "b", Topic: "news"}); !isNameError(err) {
		t.Errorf("to a topic and a process: %v", err)
	}
	if err := a.SendMsg(ctx, &Message{Mode: Acked, Topic: "news"}); !errors.Is(err, ErrConfig) {
		t.Errorf("acked: %v", err)
	}
	if _, err := a.RequestMsg(ctx, &Message{Topic: "news"}); !isNameError(err) {
		t.Errorf("request: %v", err)
	}
	if _, err := a.Request(ctx, Everyone, nil); !isNameError(err) {
		t.Errorf("request: %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := a.JoinTopic(canceled, "news"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	passive := startNode(t, connect(t, s), "p", nil, func(c *courierConfig) { c.passive = true })
	if _, err := passive.JoinTopic(ctx, "news"); !errors.Is(err, ErrPassive) {
		t.Errorf("passive: %v", err)
	}
	off := startNode(t, connect(t, s), "o", nil, func(c *courierConfig) { c.inbox.Off = true })
	if _, err := off.JoinTopic(ctx, "news"); !errors.Is(err, ErrConfig) {
		t.Errorf("off: %v", err)
	}
	acked := startNode(t, connect(t, s), "d", nil, func(c *courierConfig) { c.mode = Acked })
	if err := acked.Publish(ctx, "news", nil); err != nil {
		t.Errorf("Publish of a node whose messages are acked: %v", err)
	}
	topic := joinTopic(t, a, "news")
	a.courier.close()
	topic.Leave()
	if _, err := a.JoinTopic(ctx, "news"); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if err := a.Publish(ctx, "news", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func isNameError(err error) bool {
	_, ok := errors.AsType[*NameError](err)
	return ok
}

func TestTopicDisconnected(t *testing.T) {
	s := startServer(t)
	down := make(chan struct{})
	nc := connect(t, s, nats.ReconnectBufSize(-1), nats.MaxReconnects(-1),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { close(down) }))
	a := startNode(t, nc, "a", nil, nil)
	subs := len(a.courier.subs)
	s.Shutdown()
	<-down
	ctx := deadline(t)
	if _, err := a.JoinTopic(ctx, "news"); !errors.Is(err, ErrDisconnected) {
		t.Errorf("JoinTopic = %v", err)
	}
	if err := a.Publish(ctx, "news", nil); !errors.Is(err, ErrDisconnected) {
		t.Errorf("Publish = %v", err)
	}
	if err := a.Serve(ctx, "mail", 1, echo); !errors.Is(err, ErrDisconnected) {
		t.Errorf("Serve = %v", err)
	}
	if _, err := a.Anycast(ctx, "mail", nil); !errors.Is(err, ErrDisconnected) {
		t.Errorf("Anycast = %v", err)
	}
	nc.Close()
	if _, err := a.JoinTopic(ctx, "news"); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrConnClosed) {
		t.Errorf("JoinTopic = %v", err)
	}
	if n := len(a.courier.subs); n != subs {
		t.Errorf("%d subscriptions are kept, want %d", n, subs)
	}
}

// TestTopicForged: what names another sender than its reply subject, or is a
// stranger's, is dropped.
func TestTopicForged(t *testing.T) {
	s := startServer(t)
	b := startNode(t, connect(t, s), "b", nil, nil)
	joinTopic(t, b, "news")
	raw := connect(t, s)
	const at = "fab.c1.test.g.news."
	forged := []nats.Msg{
		{Subject: at + "a"},
		{Subject: at + "ext"},
		{Subject: at + "a", Reply: atR + "victim._.b012345.1"},
		{Subject: at + "a", Reply: atR + "a.b.b012345.1"},
		{Subject: at + "a", Reply: atR + "a._.s012345.1"},
		{Subject: at + "a", Reply: atR + "a._.c012345.1-0123456789"},
		{Subject: at + "a", Reply: "_INBOX.x"},
		{Subject: at + "a", Reply: atR + "a._.b012345.1", Header: nats.Header{"Nats-Stream": {"S"}}},
	}
	for _, m := range forged {
		if err := raw.PublishMsg(&m); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.PublishRequest(at+"a", atR+"a._.b012345.9", []byte("fine")); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, b); m.ID != 9 || string(m.Data) != "fine" {
		t.Errorf("received %+v", m)
	}
	if n := b.Stats().Invalid; n != uint64(len(forged)) {
		t.Errorf("Invalid = %d, want %d", n, len(forged))
	}
}

// TestTopicPermission: a topic that the server denies is an error, not silence.
func TestTopicPermission(t *testing.T) {
	s := startSecured(t, []string{"fab.c1.test.g.secret.>", "fab.c1.test.q.secret.>", "fab.c1.test.b.a"}, "a", "b")
	v := &view{here: map[PID]bool{"a": true, "b": true}, reads: make(map[PID]int)}
	a, b := startAs(t, s, "a", v), startAs(t, s, "b", v)
	ctx := deadline(t)
	subs := len(b.courier.subs)
	joinTopic(t, b, "news")
	publish(t, a, "news", "1")
	if m := receive(t, b); m.Topic != "news" {
		t.Errorf("received %+v", m)
	}
	if _, err := b.JoinTopic(ctx, "secret"); !errors.Is(err, ErrPermission) {
		t.Errorf("JoinTopic = %v", err)
	}
	if n := len(b.courier.subs); n != subs+1 {
		t.Errorf("%d subscriptions are kept, want %d and news", n, subs)
	}
	if err := b.Serve(ctx, "secret", 1, echo); !errors.Is(err, ErrPermission) {
		t.Errorf("Serve = %v", err)
	}
	if _, err := a.Anycast(ctx, "secret", nil); !errors.Is(err, ErrPermission) {
		t.Errorf("Anycast = %v", err)
	}
	for _, q := range []Query{{}, {Topic: "secret", Count: 1}} {
		var last error
		for _, last = range a.Gather(ctx, q, nil) {
		}
		if !errors.Is(last, ErrPermission) {
			t.Errorf("Gather(%+v) ended with %v", q, last)
		}
	}
	if err := a.Publish(ctx, "secret", nil); err != nil {
		t.Fatal(err)
	}
	for { // the server says so soon
		err := a.Flush(ctx)
		if u, ok := errors.AsType[Undeliverable](err); ok && u.To == Everyone && errors.Is(err, ErrPermission) {
			break
		}
		if err != nil {
			t.Fatalf("Flush = %v, want the missing permission", err)
		}
	}
}

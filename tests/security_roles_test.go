package tests

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestPermissionsSuffice: with the allow-list of its role everything that a node
// does works, in each layout, and the server refuses nothing.
func TestPermissionsSuffice(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		r.found()
		c1, c2, m1, o1 := r.join("c1"), r.join("c2"), r.join("m1"), r.join("o1")
		awaitView(t, o1, members(3))
		for _, from := range []*fabric.Node{c1, m1, o1} {
			exchange(t, from, c2)
			exchange(t, from, m1)
		}
		carry(t, m1, c2, o1)
		lead(t, c1, m1, o1)
		divide(t, balance.Default, c1, m1)
		divide(t, balance.StrictIndex, c1, m1)
		if err := m1.SetMeta(within(t, patience), map[string]string{"zone": "a"}); err != nil {
			t.Error(err)
		}
		awaitView(t, o1, func(v fabric.View) bool {
			return len(v.Members) == 3 && v.Members[2].Meta["zone"] == "a"
		})
		leave(t, c1) // the coordinator, perhaps: the other candidate takes over
		awaitView(t, m1, members(2))
		leave(t, o1, m1)
		awaitView(t, c2, members(1))
		if lines := r.refusals(); len(lines) > 0 {
			t.Errorf("the server refused %d times:\n%s", len(lines), lines)
		}
	})
}

// exchange has from send to, broadcast to and ask to.
func exchange(t *testing.T, from, to *fabric.Node) {
	t.Helper()
	if from == to {
		return
	}
	ctx := within(t, patience)
	if err := from.Send(ctx, to.PID(), []byte("sent")); err != nil {
		t.Fatal(err)
	}
	if err := from.Broadcast(ctx, []byte("cast")); err != nil {
		t.Fatal(err)
	}
	if err := from.Flush(ctx); err != nil {
		t.Fatalf("Flush of %s = %v", from.PID(), err)
	}
	large := &fabric.Message{To: to.PID(), Type: "large", Data: make([]byte, 3<<20)} // more than max_payload
	answered := make(chan error, 1)
	go func() {
		for want := map[string]bool{"sent": true, "cast": true, "large": true, "acked": true, "asked": true}; len(want) > 0; {
			m, err := to.Receive(ctx)
			if err != nil {
				answered <- fmt.Errorf("%v, not received: %v", err, want)
				return
			}
			if m.From != from.PID() {
				continue // an earlier broadcast
			}
			delete(want, string(m.Data))
			if len(m.Data) == len(large.Data) {
				delete(want, m.Type)
			}
			if m.IsRequest() {
				if err := m.Reply(ctx, []byte("answer")); err != nil {
					answered <- err
					return
				}
			}
		}
		answered <- nil
	}()
	for _, m := range []*fabric.Message{large, {To: to.PID(), Mode: fabric.Acked, Data: []byte("acked")}} {
		if err := from.SendMsg(ctx, m); err != nil {
			t.Errorf("SendMsg of %s to %s = %v", from.PID(), to.PID(), err)
		}
	}
	m, err := from.Request(ctx, to.PID(), []byte("asked"))
	if err != nil || string(m.Data) != "answer" {
		t.Errorf("Request of %s to %s = %v, %v", from.PID(), to.PID(), m, err)
	}
	if err := <-answered; err != nil {
		t.Errorf("%s from %s: %v", to.PID(), from.PID(), err)
	}
	if _, err := from.Request(ctx, "nobody", nil); !errors.Is(err, fabric.ErrNoPeer) {
		t.Errorf("Request to nobody = %v, want ErrNoPeer", err)
	}
}

// carry has two members use topics, services and streams, and ask many; an observer
// publishes and asks.
func carry(t *testing.T, a, b, observer *fabric.Node) {
	t.Helper()
	ctx := within(t, patience)
	topic, err := b.JoinTopic(ctx, "news")
	if err != nil {
		t.Fatal(err)
	}
	defer topic.Leave()
	for _, n := range []*fabric.Node{a, observer} {
		if err := n.Publish(ctx, "news", []byte("news")); err != nil {
			t.Errorf("Publish of %s = %v", n.PID(), err)
		}
		for {
			m, err := b.Receive(ctx)
			if err != nil {
				t.Fatalf("no news of %s: %v", n.PID(), err)
			}
			if m.From == n.PID() && string(m.Data) == "news" {
				break
			}
		}
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		served <- b.Serve(serving, "work", 1, func(context.Context, *fabric.Message) ([]byte, error) { return []byte("done"), nil })
	}()
	for _, n := range []*fabric.Node{a, observer} {
		m, err := n.Anycast(ctx, "work", nil)
		for errors.Is(err, fabric.ErrNoReceiver) && ctx.Err() == nil { // it has not begun to serve
			m, err = n.Anycast(ctx, "work", nil)
		}
		if err != nil || string(m.Data) != "done" {
			t.Errorf("Anycast of %s = %v, %v", n.PID(), m, err)
		}
	}
	stop()
	<-served
	stream, err := a.OpenStream(ctx, b.PID(), "bytes", -1)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		in, err := b.AcceptStream(ctx)
		if err == nil {
			var data []byte
			if data, err = io.ReadAll(in); err == nil && len(data) != 1<<20 {
				err = fmt.Errorf("%d bytes", len(data))
			}
			in.Close()
		}
		read <- err
	}()
	_, err = stream.Write(make([]byte, 1<<20))
	if err := errors.Join(err, stream.Close(), <-read); err != nil {
		t.Errorf("the stream: %v", err)
	}
	answering, done := context.WithCancel(ctx)
	defer done()
	go b.Handle(answering, 1, func(context.Context, *fabric.Message) ([]byte, error) { return []byte("here"), nil })
	answers := 0
	for _, err := range observer.Gather(ctx, fabric.Query{Count: 1}, nil) {
		if err != nil {
			t.Errorf("Gather: %v", err)
		}
		answers++
	}
	if answers != 1 {
		t.Errorf("Gather: %d answers", answers)
	}
}

// lead has a candidate lead an election, which a member cannot, and everybody see.
func lead(t *testing.T, candidate, member, observer *fabric.Node) {
	t.Helper()
	ctx := within(t, patience)
	e := ballot(t, candidate)
	term, err := e.Campaign(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ballot(t, member).Campaign(ctx); !errors.Is(err, fabric.ErrNotCandidate) {
		t.Errorf("Campaign of a member = %v, want ErrNotCandidate", err)
	}
	for _, n := range []*fabric.Node{member, observer} {
		if l, err := ballot(t, n).Leader(ctx); err != nil || l.PID != candidate.PID() {
			t.Errorf("Leader as %s sees it = %v, %v, want %s", n.PID(), l, err, candidate.PID())
		}
	}
	if err := term.Put(ctx, "at", []byte("7")); err != nil {
		t.Error(err)
	}
	if v, err := term.Get(ctx, "at"); err != nil || string(v) != "7" {
		t.Errorf("Get = %q, %v", v, err)
	}
	if err := term.Resign(ctx); err != nil {
		t.Error(err)
	}
}

func ballot(t *testing.T, n *fabric.Node) *election.Election {
	t.Helper()
	e, err := election.New(n, election.Config{Name: "billing"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// divide has the nodes share a group out, and leave it.
func divide(t *testing.T, mode balance.Mode, nodes ...*fabric.Node) {
	t.Helper()
	ctx := within(t, patience)
	var groups []*balance.Group
	for _, n := range nodes {
		g, err := balance.Join(ctx, n, balance.Config{
			Group: fmt.Sprint("crawl", mode), Workers: 2, Mode: mode, OnChange: func(balance.Share) {},
		})
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, g)
	}
	for i, g := range groups {
		for g.Share().Total != 2*len(nodes) {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("%s has %v", nodes[i].PID(), g.Share())
			}
		}
	}
	for i, g := range groups {
		if first := g.Share().First; mode != balance.Default {
			if err := g.Put(ctx, first, fmt.Sprint("done-", i), []byte("7")); err != nil {
				t.Errorf("Put under index %d = %v", first, err)
			}
		}
		if err := g.Leave(ctx); err != nil {
			t.Error(err)
		}
	}
}

// TestPermissionsTakeover: a candidate that dies is ended and succeeded by another,
// with the permissions of its role, while members and observers see it.
func TestPermissionsTakeover(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		r.found()
		c1, c2, m1 := r.join("c1"), r.join("c2"), r.join("m1")
		awaitView(t, m1, members(3))
		ctx := within(t, patience)
		if _, err := ballot(t, c1).Campaign(ctx); err != nil {
			t.Fatal(err)
		}
		kill(c1)
		term, err := ballot(t, c2).Campaign(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if term.Number() != 2 {
			t.Errorf("term %d, want 2", term.Number())
		}
		awaitView(t, m1, members(2))
		if lines := r.refusals(); len(lines) > 0 {
			t.Errorf("the server refused %d times:\n%s", len(lines), lines)
		}
	})
}

// kill ends a node as a crash would: nothing is given back.
func kill(n *fabric.Node) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	n.Leave(ctx)
}

// TestPermissionsDomain: the bucket is behind a JetStream domain, and the allow-list
// on the leaf is under that domain's prefix.
func TestPermissionsDomain(t *testing.T) {
	port, err := natstest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	hub := natstest.Start(t, func(o *server.Options) {
		o.JetStreamDomain, o.ServerName = "hub", "hub"
		o.LeafNode = server.LeafNodeOpts{Host: "127.0.0.1", Port: port}
	})
	root := join(t, hub.URL(), "root")
	leaf := natstest.Start(t, func(o *server.Options) {
		o.ServerName, o.JetStreamDomain = "leaf", "leaf"
		o.LeafNode.Remotes = []*server.RemoteLeafOpts{{URLs: []*url.URL{{Scheme: "nats-leaf", Host: fmt.Sprintf("127.0.0.1:%d", port)}}}}
		for pid, role := range map[fabric.PID]fabric.Role{"c1": fabric.RoleCandidate, "m1": fabric.RoleMember} {
			p, err := fabric.Config{Cluster: "t", PID: pid, Domain: "hub"}.Permissions(fabric.Scope{Role: role})
			if err != nil {
				t.Fatal(err)
			}
			o.Users = append(o.Users, &server.User{Username: string(pid), Password: "p", Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Allow: p.All().Publish},
				Subscribe: &server.SubjectPermission{Allow: p.All().Subscribe},
			}})
		}
	})
	probe := leaf.Connect(nats.UserInfo("c1", "p"), nats.CustomInboxPrefix(fabric.InboxPrefix("t", "", "c1")))
	for ctx := within(t, patience); ; {
		if _, err := probe.RequestWithContext(ctx, "$JS.hub.API.INFO", nil); err == nil {
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the leaf does not find its hub")
		}
	}
	at := func(pid fabric.PID, role fabric.Role) *fabric.Node {
		return join(t, leaf.URL(), pid, func(c *fabric.Config) {
			c.Domain, c.Role, c.NATS = "hub", role, []nats.Option{nats.UserInfo(string(pid), "p")}
		})
	}
	c1, m1 := at("c1", fabric.RoleCandidate), at("m1", fabric.RoleMember)
	awaitView(t, m1, members(3))
	exchange(t, m1, root)
	exchange(t, root, m1)
	lead(t, c1, m1, root)
	leave(t, root)
	awaitView(t, m1, members(2))
	if strings.Contains(leaf.Logs(), "Violation") {
		t.Errorf("the server refused something:\n%s", leaf.Logs())
	}
}

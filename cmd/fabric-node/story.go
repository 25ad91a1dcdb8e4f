package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

const demoElection = "primary"

// A demoNode is one of the demo's processes, which here are only nodes.
type demoNode struct {
	*fabric.Node
	workers  int
	conn     *nats.Conn // of node1 only, which is cut off by closing it
	election *election.Election
	group    *balance.Group
}

// join joins the three nodes of libcluster's README, with 2, 1 and 4 workers.
func (d *demo) join(ctx context.Context, srv *embedded.Server) error {
	start := time.Now()
	for i, workers := range []int{2, 1, 4} {
		cfg := fabric.Config{
			Cluster: "demo", PID: fabric.PID(fmt.Sprintf("node%d", i+1)), URL: srv.ClientURL(),
			Lease: demoLease, Logger: d.app.log,
		}
		n := &demoNode{workers: workers}
		if i == 0 {
			conn, err := srv.Connect()
			if err != nil {
				return err
			}
			n.conn, cfg.Conn, cfg.URL = conn, conn, ""
		}
		node, err := fabric.Join(ctx, cfg)
		if err != nil {
			return err
		}
		n.Node = node
		d.nodes = append(d.nodes, n)
	}
	for _, n := range d.nodes {
		if err := d.awaitMembers(ctx, n, "node1 node2 node3"); err != nil {
			return err
		}
	}
	d.say("joined", "node1, node2, node3; each sees all three after %.0f ms", milliseconds(time.Since(start)))
	return nil
}

// awaitMembers waits until n sees exactly the members named.
func (d *demo) awaitMembers(ctx context.Context, n *demoNode, want string) error {
	seen := ""
	for _, err := range n.Changes(ctx) {
		if err != nil {
			return fmt.Errorf("%s sees the members %q, want %q: %w", n.PID(), seen, want, err)
		}
		var pids []string
		for _, m := range n.View().Members {
			pids = append(pids, string(m.PID))
		}
		if seen = strings.Join(pids, " "); seen == want {
			return d.claim(true, "")
		}
	}
	return fmt.Errorf("%s sees the members %q, want %q: %w", n.PID(), seen, want, context.Cause(ctx))
}

func (d *demo) message(ctx context.Context) error {
	start := time.Now()
	if err := d.nodes[2].Send(ctx, "node1", []byte("hello")); err != nil {
		return err
	}
	if err := d.receives(ctx, d.nodes[0], "node3", "node1", "hello"); err != nil {
		return err
	}
	d.say("message", `node3 to node1: "hello", after %.2f ms`, milliseconds(time.Since(start)))
	return nil
}

// receives checks the next message of n.
func (d *demo) receives(ctx context.Context, n *demoNode, from, to fabric.PID, data string) error {
	m, err := n.Receive(ctx)
	if err != nil {
		return fmt.Errorf("%s receives: %w", n.PID(), err)
	}
	return d.claim(m.From == from && m.To == to && string(m.Data) == data,
		"%s receives %q from %s to %s (it was %q from %s to %s)", n.PID(), data, from, to, m.Data, m.From, m.To)
}

// broadcast reaches everyone but the sender, once: a message of the same sender
// after it is the next that each of them gets.
func (d *demo) broadcast(ctx context.Context) error {
	sender := d.nodes[1]
	if err := sender.Broadcast(ctx, []byte("news")); err != nil {
		return err
	}
	for _, n := range d.nodes {
		if err := sender.Send(ctx, n.PID(), []byte("after")); err != nil {
			return err
		}
	}
	for _, n := range d.nodes {
		if n != sender {
			if err := d.receives(ctx, n, sender.PID(), fabric.Everyone, "news"); err != nil {
				return err
			}
		}
		if err := d.receives(ctx, n, sender.PID(), n.PID(), "after"); err != nil {
			return err
		}
	}
	d.say("broadcast", `node2 to all: "news", once at node1 and node3, not at node2`)
	return nil
}

func (d *demo) request(ctx context.Context) error {
	hctx, stop := context.WithCancel(ctx)
	handled := make(chan error, 1)
	go func() {
		handled <- d.nodes[1].Handle(hctx, 1, func(_ context.Context, m *fabric.Message) ([]byte, error) {
			return append([]byte("re: "), m.Data...), nil
		})
	}()
	start := time.Now()
	reply, err := d.nodes[0].Request(ctx, "node2", []byte("status"))
	rtt := time.Since(start)
	stop()
	<-handled
	if err != nil {
		return err
	}
	if err := d.claim(reply.From == "node2" && string(reply.Data) == "re: status", "node2 answers (it was %q from %s)", reply.Data, reply.From); err != nil {
		return err
	}
	d.say("request", `node1 to node2: "status", answered %q after %.2f ms`, reply.Data, milliseconds(rtt))
	return nil
}

// elect lets node1 lead first, and the others wait for it to fall.
func (d *demo) elect(ctx context.Context) error {
	for _, n := range d.nodes {
		var err error
		if n.election, err = election.New(n.Node, election.Config{Name: demoElection, Logger: d.app.log}); err != nil {
			return err
		}
	}
	term, err := d.nodes[0].election.Campaign(ctx)
	if err != nil {
		return err
	}
	d.term = term
	d.result.Leaders = append(d.result.Leaders, demoTerm{"node1", term.Number(), term.Token()})
	for _, n := range d.nodes {
		l, err := first(n.election.Leaders(ctx), func(l election.Leader) bool { return l.PID == "node1" })
		if err != nil {
			return fmt.Errorf("%s waits to see node1 lead: %w", n.PID(), err)
		}
		if err := d.claim(l.Term == term.Number() && l.Token == term.Token(),
			"%s sees node1's term %d with token %d (it was %d, %d)", n.PID(), term.Number(), term.Token(), l.Term, l.Token); err != nil {
			return err
		}
	}
	d.say("leader", "node1, term %d, fencing token %d; all three agree", term.Number(), term.Token())
	return nil
}

// balance gives each node its workers' indices.
func (d *demo) balance(ctx context.Context) error {
	for _, n := range d.nodes {
		var err error
		n.group, err = balance.Join(ctx, n.Node, balance.Config{Group: "crawl", Workers: n.workers, Logger: d.app.log})
		if err != nil {
			return err
		}
	}
	shares, err := d.awaitShares(ctx, d.nodes, 7)
	if err != nil {
		return err
	}
	d.result.Nodes = shares
	d.say("indices", "7 for 3 nodes with 2, 1 and 4 workers; each exactly once")
	d.showIndices(shares)
	return nil
}

// awaitShares waits until every node has a share of total, and checks that they tile it.
func (d *demo) awaitShares(ctx context.Context, nodes []*demoNode, total int) ([]demoShare, error) {
	var shares []demoShare
	for _, n := range nodes {
		s, err := first(n.group.Shares(ctx), func(s balance.Share) bool { return s.Total == total })
		if err != nil {
			return nil, fmt.Errorf("%s waits for its share of %d: %w", n.PID(), total, err)
		}
		shares = append(shares, demoShare{string(n.PID()), s.First, s.Workers})
	}
	next := 0
	for _, s := range slices.SortedFunc(slices.Values(shares), func(a, b demoShare) int { return a.First - b.First }) {
		if err := d.claim(s.First == next, "%s begins at %d (it was %d)", s.PID, next, s.First); err != nil {
			return nil, err
		}
		next += s.Workers
	}
	return shares, d.claim(next == total, "the shares add up to %d (it was %d)", total, next)
}

// first returns the first value that is wanted.
func first[T any](values iter.Seq2[T, error], wanted func(T) bool) (T, error) {
	var zero T
	for v, err := range values {
		if err != nil {
			return zero, err
		}
		if wanted(v) {
			return v, nil
		}
	}
	return zero, errors.New("the iteration ended")
}

// leave lets all nodes leave that can.
func (d *demo) leave(ctx context.Context) {
	for _, n := range d.nodes {
		n.Leave(ctx)
		if n.conn != nil {
			n.conn.Close()
		}
	}
}

//go:build linux

package peers

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// until calls a condition until it holds.
func until(ctx context.Context, holds func() (bool, error)) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := holds(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settled is for how long a candidate waits before it counts as standing: for the
// leader to have it in its queue, and for its watch of the leader to be served at once,
// which etcd begins within 100 ms.
const settled = 150 * time.Millisecond

func settle(ctx context.Context) error {
	select {
	case <-time.After(settled):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A fabricCandidate is a node of natsfabric.
type fabricCandidate struct {
	node *fabric.Node
	e    *election.Election
	term *election.Term
}

func standFabric(ctx context.Context, url, name, id string, ttl time.Duration) (candidate, error) {
	return joinFabric(ctx, url, name, id, ttl, election.Lease)
}

// standProof is standFabric with a candidate that, on the leader's machine, sees it end.
func standProof(ctx context.Context, url, name, id string, ttl time.Duration) (candidate, error) {
	return joinFabric(ctx, url, name, id, ttl, election.Proof)
}

func joinFabric(ctx context.Context, url, name, id string, ttl time.Duration, f election.Failover) (candidate, error) {
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "peers", PID: fabric.PID(id), URL: url, Lease: ttl, Inbox: fabric.Inbox{Off: true}})
	if err != nil {
		return nil, err
	}
	return elect(node, election.Config{Name: name, Failover: f})
}

func elect(node *fabric.Node, cfg election.Config) (candidate, error) {
	e, err := election.New(node, cfg)
	return &fabricCandidate{node: node, e: e}, err
}

func (c *fabricCandidate) campaign(ctx context.Context) (err error) {
	c.term, err = c.e.Campaign(ctx)
	return err
}

func (c *fabricCandidate) standing(ctx context.Context) error {
	err := until(ctx, func() (bool, error) { return c.e.State() == election.Follower, nil })
	if err != nil {
		return err
	}
	return settle(ctx)
}

func (c *fabricCandidate) resign(ctx context.Context) error { return c.term.Resign(ctx) }
func (c *fabricCandidate) leave(ctx context.Context) error  { return c.node.Leave(ctx) }

// A protocolCandidate is the lease of natsfabric without a node around it, for leases
// that are shorter than a fabric admits.
type protocolCandidate struct {
	nc    *nats.Conn
	s     *lease.Session
	claim *lease.Claim
	grant *lease.Grant
}

func standProtocol(ctx context.Context, url, name, id string, ttl time.Duration) (candidate, error) {
	nc, err := connect(url)
	if err != nil {
		return nil, err
	}
	bucket := kv.New(nc, kv.Config{
		Name: "fab_protocol_production", Feed: "fab.protocol.production.kv", Replicas: 1, Lease: ttl, Logger: slog.New(slog.DiscardHandler),
		Alone: func(context.Context) (bool, error) { return true, nil },
	})
	if err := bucket.Open(ctx); err != nil {
		return nil, err
	}
	s, err := lease.Start(ctx, bucket, lease.Config{PID: id, Lease: ttl, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	return &protocolCandidate{nc: nc, s: s, claim: s.Claim(lease.KeyElection(name))}, nil
}

func (c *protocolCandidate) campaign(ctx context.Context) (err error) {
	c.grant, err = c.claim.Acquire(ctx, 0)
	return err
}

func (c *protocolCandidate) standing(ctx context.Context) error {
	err := until(ctx, func() (bool, error) { return c.claim.Phase() == lease.PhaseWaiting, nil })
	if err != nil {
		return err
	}
	return settle(ctx)
}

func (c *protocolCandidate) resign(ctx context.Context) error { return c.grant.Release(ctx) }

func (c *protocolCandidate) leave(ctx context.Context) error {
	defer c.nc.Close()
	return c.s.Leave(ctx)
}

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/natsfabric/natsfabric/election"
)

// failover cuts node1 off, which leads and has indices, without a goodbye: its
// connection is closed under it. The others must find out by its lease.
func (d *demo) failover(ctx context.Context) error {
	survivors := d.nodes[1:]
	old := d.result.Leaders[0]
	won := make(chan *election.Term, len(survivors)) // both may win, one after the other
	cctx, stop := context.WithCancel(ctx)
	defer stop()
	for _, n := range survivors {
		go func() {
			if term, err := n.election.Campaign(cctx); err == nil {
				won <- term
			}
		}()
	}
	cut := time.Now()
	d.nodes[0].conn.Close()
	d.say("failure", "node1 leads and holds 0-1; its connection is cut, without a goodbye")

	var term *election.Term
	select {
	case term = <-won:
	case <-ctx.Done():
		return fmt.Errorf("nobody took over from node1: %w", context.Cause(ctx))
	}
	now, overlap := time.Now(), d.term.Context().Err() == nil
	leader, err := survivors[0].election.Leader(ctx)
	if err != nil {
		return err
	}
	d.result.FailoverMS = milliseconds(now.Sub(cut))
	d.result.Leaders = append(d.result.Leaders, demoTerm{string(leader.PID), term.Number(), term.Token()})
	if err := d.claim(leader.PID != "node1" && leader.Token == term.Token(), "the winner is seen to lead (it was %s)", leader.PID); err != nil {
		return err
	}
	if err := d.claim(term.Token() > old.Token, "the token %d grows (it was %d)", old.Token, term.Token()); err != nil {
		return err
	}
	if err := d.claim(!overlap, "node1's term had ended before %s led", leader.PID); err != nil {
		return err
	}
	d.say("leader", "%s, term %d, fencing token %d, after %.2f s; node1's term had ended by itself",
		leader.PID, term.Number(), term.Token(), now.Sub(cut).Seconds())

	for _, n := range survivors {
		if err := d.awaitMembers(ctx, n, "node2 node3"); err != nil {
			return err
		}
	}
	d.say("members", "node2, node3, after %.2f s", time.Since(cut).Seconds())
	shares, err := d.awaitShares(ctx, survivors, 5)
	if err != nil {
		return err
	}
	d.result.Nodes = shares
	d.say("indices", "5 for 2 nodes, after %.2f s", time.Since(cut).Seconds())
	d.showIndices(shares)
	return nil
}

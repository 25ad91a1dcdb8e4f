package election

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// Leader reads who leads, or returns an error that wraps [ErrNoLeader]. A leader
// that has just crashed is reported until its lease has run out.
func (e *Election) Leader(ctx context.Context) (Leader, error) {
	h, err := e.host.Session.Holder(ctx, e.key)
	if err != nil {
		return Leader{}, e.explain(err)
	}
	if h.PID == "" {
		return Leader{}, e.explain(ErrNoLeader)
	}
	return leaderOf(h), nil
}

// Leaders reports who leads: now, and whenever that changes. It is another, or
// nobody, with the successor if the leader named one; or the leader is suspected, or
// heard again. Terms come in their order. A reader that is slow may miss leaders
// between, never the last. The iteration ends, with an error, with ctx or when the
// node does; and when the loop is left.
func (e *Election) Leaders(ctx context.Context) iter.Seq2[Leader, error] {
	return func(yield func(Leader, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(e.node.Context(), func() { cancel(context.Cause(e.node.Context())) })()
		left := false
		err := e.host.Session.Observe(ctx, e.key, func(h lease.Holder) bool {
			left = !yield(leaderOf(h), nil)
			return !left
		})
		if !left {
			yield(Leader{}, e.explain(err))
		}
	}
}

// A Listed is an election that was ever held.
type Listed struct {
	Name   string
	Leader Leader // with an empty PID if nobody leads
	Term   uint64 // the number of the last one
	// Foreign: its key in the bucket holds a record that is not the fabric's.
	Foreign bool
}

// List reads the elections of node's fabric, sorted by name, and who leads each. It
// does so one after the other: there is no moment at which all of it was true.
func List(ctx context.Context, node *fabric.Node) ([]Listed, error) {
	claims, err := node.Host().Session.Claims(ctx, lease.Elections)
	if err != nil {
		return nil, fmt.Errorf("list the elections: %w", err)
	}
	all := make([]Listed, len(claims))
	for i, c := range claims {
		all[i] = Listed{strings.TrimPrefix(c.Key, lease.KeyElection("")), leaderOf(c.Holder), c.Term, c.Foreign}
	}
	slices.SortFunc(all, func(a, b Listed) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func leaderOf(h lease.Holder) Leader {
	return Leader{
		PID: fabric.PID(h.PID), Incarnation: h.Inc, Term: h.Term, Token: h.Token, Since: h.Since,
		Priority: h.Priority, Suspected: h.Suspected, Successor: fabric.PID(h.To),
	}
}

// A State is what a node is in an election.
type State uint8

const (
	// Observer: it does not campaign.
	Observer State = iota
	// Follower: it campaigns, and another leads.
	Follower
	// Candidate: it campaigns, and nobody is known to lead.
	Candidate
	// Leading: it has a valid term.
	Leading
	// Suspended: its term holds no longer and may hold again, see
	// Config.HoldOnSuspend.
	Suspended
	// Closed: the node has ended.
	Closed
)

var stateNames = [...]string{
	Observer: "observer", Follower: "follower", Candidate: "candidate", Leading: "leader", Suspended: "suspended", Closed: "closed",
}

// String returns "observer", "follower", "candidate", "leader", "suspended" or "closed".
func (s State) String() string { return stateNames[s] }

// State returns what the node is in the election at this moment: a description, and
// no permission. Work under a [Term]. Elections of one name on one node share it.
func (e *Election) State() State {
	if e.node.Context().Err() != nil || e.host.Session.Leaving().Err() != nil {
		return Closed
	}
	switch e.claim.Phase() {
	case lease.PhaseWaiting:
		return Follower
	case lease.PhaseVacant:
		return Candidate
	case lease.PhaseHeld:
		return Leading
	case lease.PhaseSuspended:
		return Suspended
	}
	return Observer
}

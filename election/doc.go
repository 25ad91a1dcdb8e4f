// Package election makes at most one process of a fabric the leader of a name, and
// says so with a [Term]: a value with a context that ends before anyone else can
// be leader, and a fencing token that outlives it.
//
//	e, err := election.New(node, election.Config{Name: "billing"})
//	err = e.Lead(ctx, func(ctx context.Context, t *election.Term) error {
//		return bill(ctx, t.Token()) // stop when ctx ends
//	})
//
// # Guarantees
//
// Of the terms of one name, at most one is valid at a time, provided that the
// clocks of the processes run at the same rate within 1 %, whatever they show.
// Terms are numbered, and their tokens rise: over crashes, over restarts of every
// process and every server, and when the bucket was lost and made anew, unless by a
// process that never saw it and whose clock shows a time before its creation.
//
// A valid term is no proof that an effect comes in time: a process may be stopped
// between its check and its effect, for longer than the lease. Whatever must never
// be done by two must be fenced: give the token along, and have the resource refuse
// one lower than the highest it has seen.
//
// # Failure handling
//
//	                Campaign               the claim is ours
//	follower -----------------> candidate -------------------> leader
//	    ^                                                         |
//	    +---------------------------------------------------------+
//	       Resign, or the function of Lead returned: [ErrResigned], others at once
//	       the lease was not renewed in time, or lost: [ErrLost], others after it
//
// A leader that crashes is replaced when its lease has run out. One that is cut off
// from NATS loses its term first. One that cannot renew because JetStream is away
// loses its term, too; nobody can take it meanwhile.
//
// # Timing
//
// A lease is the node's (fabric.Config.Lease). After a crash the next leader begins
// 1.01 leases after the last renewal, which is up to a third of a lease old. A
// leader trusts its term until a twentieth of a lease before the lease's end, less
// Config.Grace.
//
// # Concurrency
//
// An [Election] and a [Term] are safe for concurrent use. Campaigns of one name on one
// node queue.
package election

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
// be done by two must be fenced: see docs/FENCING.md. [Term.Put] keeps small state
// that the server takes from the leader only, [FenceStream] publishes to a stream
// from which a later term shuts this one out, and package fence is a gate for
// anything else. For a resource that can compare, give [Term.Token] along.
//
// # Who comes next
//
// Those who campaign tell the leader that they stand. It ranks them, by
// Config.Priority and then by how long they are in the fabric. When the claim is
// free, the first takes it at once, the others one after the other, 5 ms apart; of a
// thousand only the first eight watch the leader and compete, and the others come
// after them. A leader ends its term early only by itself: [Term.Resign],
// [Term.Transfer], or because another asked for that, [Election.AskTransfer],
// [Election.AskResign] or Config.Preempt, and then after its work has stopped. What
// candidates and leaders tell each other decides nothing: if it is lost, another
// comes first, or a little later.
//
// # Failure handling
//
//	 Observer
//	    |  Campaign, Lead, Try
//	    v                another leads
//	Candidate <------------------------------> Follower
//	    |  the claim is ours
//	    v
//	 Leading -- the lease was not renewed in time ---> Suspended (HoldOnSuspend only)
//	    |    <- renewed, and nobody has led since ---     |
//	    |                                                 | another has ended it
//	    v                                                 v
//	the term is over: [ErrResigned], [ErrHandOver], [ErrLost]
//
// A leader that crashes is replaced when its lease has run out, or at once by a
// candidate on the same machine with Failover Proof. One that is cut off from NATS
// loses its term first. One that cannot renew because JetStream is away loses its
// term, too, or is suspended; nobody can take it meanwhile, and when writes pass again
// the others wait for a lease, so that it can come back.
//
// # Timing
//
// A lease is the node's (fabric.Config.Lease). After a crash the next leader begins
// 1.01 leases after the last renewal, which is up to three eighths of a lease old. A
// leader trusts its term until a twentieth of a lease before the lease's end, less
// Config.Grace.
//
// # Concurrency
//
// An [Election] and a [Term] are safe for concurrent use. Campaigns of one name on one
// node queue.
package election

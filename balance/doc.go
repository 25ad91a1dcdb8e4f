// Package balance divides work between the members of a group. Each member has some
// workers (threads, goroutines, processes), each worker of the group gets an index
// out of 0 to total-1, and every member is told when its indices or the total change:
//
//	g, err := balance.Join(ctx, node, balance.Config{Group: "crawl", Workers: 4})
//	...
//	share := g.Share() // say {First: 2, Workers: 4, Total: 9, Epoch: 7}
//	for i := range share.Indices() {
//		go crawl(i, share.Total) // rows with hash % 9 == i, for i in 2..5
//	}
//
// Nobody lists the members. Sorted by PID, as numbers when all PIDs are numbers and
// bytewise otherwise, they get contiguous ranges in that order. A passive member sees
// the total and has no index. [Static] gives the same [Group] where the shape is
// fixed by configuration and there is no server.
//
// There are three ways to read a share: [Group.Share] before a unit of work,
// [Group.Shares] in a loop, and [Config.OnChange] as a callback. A unit of work
// should read it once and keep that value: First and Total of two different views do
// not belong together. [Group.Pin] keeps it, and tells at the end whether it still was
// the member's own.
//
// A change of the total gives nearly every row another index. Where that hurts, set
// [Config.Partitions]: the group then has a fixed number of partitions, each with one
// owner, and a change moves as few as any even division could ([Group.Partitions]).
// [Sticky] does the like for indices. [Config.PerZone] gives each partition an owner in
// every zone.
//
// [Group.Members] lists the members and how each stands, [Group.Changes] tells who joins,
// leaves, fails or is suspected.
//
//	Join, Static
//	   |
//	   v      view       +-----------+   lease lost, or a view without us
//	waiting -----------> | has index | ---------------------------------+
//	   |                 +-----------+ <------------------------------+ |
//	   |                   |  ^    |     view with us, after a rejoin | v
//	   |                   +--+    |                           +----------+
//	   |                new views  | Leave, node ended         | First -1 |
//	   |  ctx, node ended          v                           +----------+
//	   +-----------------------> ended <----------------------------+
//	                       First -1, Context ends
//
// # Guarantees
//
// In every view the ranges of the members tile 0 to total-1: no index is missing, none
// is given twice. A [Share] is of one view. It carries the workers that were granted,
// not those that were asked for. Epochs grow, as long as the fabric's bucket lives.
// The final state is never missed; of states in between, only the newest is shown.
// The loss of an index is shown always, and once: between the shares before and after
// it, a share with First -1.
//
// In the mode [Default] an index is should-be unique. Members learn of a new view
// within moments of each other, not at the same one, so that for a short time two may
// act on different views, and then hold the same index, or different totals. What must
// not happen twice has to be guarded where it takes effect: write in a transaction that
// checks the row, or make the work idempotent.
//
// In [StrictIndex] an index, or a partition, is held by one member at a time. The view
// says who gives it up; that member stops (OnRevoke, OnChange), says so in the bucket,
// and only then, or when its incarnation is over, a view gives it to another. A member
// that died keeps its indices until its lease has run out, 5 s by default, and nothing
// shortens that but an election of Failover Proof, whose candidate has seen the process end.
// A member that is cut off gives its own up Grace before that. Where
// the total matters as well, as in hash % total, [StrictEpoch] stops everyone for each
// change. A process that is stopped, and goes on, may act for a moment on what it had;
// no lease helps against that. [Group.Put] does: the server refuses the write; and
// [Group.Token] lets other stores do the same.
//
// What strict modes assume is what leases assume: clock rates within 1 %, no loss of the
// bucket while a holder is cut off from it; and that nobody removes the group's view.
//
// # Failure handling
//
// A member that crashes keeps its indices until its lease has run out; then the others
// get a view without it. In the mode Default that is much sooner if there is evidence: the
// server's word that its connection was closed (fabric.Config.System), or messages to it
// that nobody takes. A member that cannot renew its lease has First -1 before
// that, and gets an index again by itself when it can. While the coordinator is gone
// or NATS is unreachable, members go on with the last view as long as their own lease
// holds. A member that left has First -1 and its work stopped before the others hear
// of it.
//
// A member that has not renewed its lease for two thirds of it has a share that is
// Stale: it may not know of newer views. With [Config.Rejoin] its place is kept after
// it has gone: a restart under the same PID changes nothing for anybody else. A PID that
// fails three times in a row gets its indices back only after it has been up for a while
// ([Config.Probation]).
//
// # Concurrency
//
// A Group is safe for concurrent use. Share is one atomic load. OnRevoke, OnChange and
// OnAssign are called by one goroutine, one at a time, in this order for each change,
// with no lock held; they may call any method of the Group but Leave. A Group with a
// callback runs one goroutine to call it, which ends with the Group.
package balance

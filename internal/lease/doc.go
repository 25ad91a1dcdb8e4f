// Package lease is the one protocol that everything with an owner stands on: a
// [Session] says that a process is alive, a [Claim] says that a session holds
// something. ARCHITECTURE 5 and ADR 2 give the reasoning.
//
// # The two clocks
//
// A session is renewed by a write. Its holder trusts it until
//
//	time before sending the last acknowledged renewal + Lease - Margin
//
// on its own clock. A challenger may end it once it has itself watched the same
// revision of the session for
//
//	Lease * 1.01 + 5 ms        (Lease as the record says, not as configured here)
//
// on its own clock, and only by a write guarded by that revision. So whichever
// order the server puts a late renewal and the death in, one of them is refused;
// and a renewal is never accepted after a death, because it is guarded by the PID's
// claim. Clocks are never compared between machines; their rates may differ by 1 %.
// The server's TTL only removes what everyone has forgotten.
//
// # The records
//
//	c.p.<pid>   who has the PID; the revision at which it was taken is the
//	            incarnation. held -> left | dead -> held ...
//	s.<pid>     the session: renewed each 3/8 Lease, guarded by c.p.<pid>
//	c.e.<name>  a claim: names PID and incarnation of its holder
//
// An incarnation is over if and only if c.p.<pid> was seen at a revision above it.
// Every takeover makes that so first, and then takes the claim at its own revision.
// Absence proves nothing: an absent session is ended, under the guard that it is
// still absent, after the longest lease of the fabric.
//
// # States of a session
//
//	          taken, first renewal acknowledged
//	joining ------------------------------------> held <-----------+
//	   ^                                            |              | a renewal is
//	   |                                            | deadline     | acknowledged
//	   |  c.p.<pid> seen above the incarnation      v              |
//	   +----------------------------------------- lapsed ----------+
//	                 (from held, too)
//
// Every stretch of being held is a [Hold]. It ends at the deadline, for good; a
// session that resumes has a new Hold under the same incarnation.
//
// # Concurrency
//
// All types are safe for concurrent use. One goroutine per claim writes it, and an
// acquisition begins only when the outcome of the one before is known.
package lease

// Package roster keeps one numbered list of members, the same for everyone who
// follows it: the members of a fabric, the members of a balance group.
//
// Heartbeats never reach every member. One of them, the coordinator, holds the
// roster's claim; it alone follows who is here and writes the result, the [View],
// to one key. Everyone else learns of a new view by a small announcement.
//
//	census --> coordinator --(guarded write)--> v.<roster>
//	                 |                             ^
//	                 +--(announcement)--> follower-+ reads on a gap
//
// # Guarantees
//
// Views have consecutive epochs. A view is written under the revision of the one
// before, carries the token of its coordinator's claim, and never follows a view
// with a higher token: so a coordinator that was replaced cannot write another.
// Everyone who has seen an epoch has seen the same members under it. Followers may
// be behind; without a coordinator they go on with the last view they have.
//
// # Timing
//
// Changes are gathered: a view is written when nothing changed for the quiet time,
// or when the first change has waited for the ceiling. A change after a time
// without any goes out almost at once. A beacon within 5 s of a change, and then every
// 5 s, or 10 ms for each member up to 20 s, names the epoch, so that a missed announcement
// is found.
package roster

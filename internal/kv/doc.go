// Package kv is the fabric's bucket: one JetStream stream that holds who is
// here, who leads and who has which index.
//
// It decides three things and nothing else: how the stream is set up
// ([Bucket.Open]), how a record is written so that the outcome is always known
// ([Bucket.Put], [Bucket.Settle]), and how a change is learned ([Bucket.Watch]).
// What the records mean is the business of internal/lease and internal/roster.
//
// # Guarantees
//
// Every write carries one guard: the revision that a key must still have. The
// server checks it in the order of its log, on R1 and on R3. Revisions rise over
// the whole bucket, and never return: a bucket begins at the time of its creation
// in microseconds, so one made again after a loss begins above the old one.
//
// A write whose acknowledgement is missing may have been applied, and may yet be:
// a read that does not show it proves nothing. [Bucket.Settle] goes on until it
// sees its own record or a newer one.
//
// # Opening
//
// A bucket may be new because the old one was lost, while processes still believe
// in leases that the old one recorded. So a new bucket is closed: nothing absent
// is claimed in it until its record "b" opens it, which is written at once when
// no process of the fabric is connected, else after one longest lease.
// A record "b" that opens nothing closes the bucket, and states for how long: whoever
// opens it has waited that long, and states no shorter lease.
//
// # The feed
//
// The server repeats every stored record on a plain subject (RePublish). It costs
// a third of a KV watcher and survives what makes one deaf for 18 s, but it may
// miss, repeat and reorder. It is a doorbell: [Watch] ignores revisions it knows,
// and reads everything again every 5 s, after a reconnect and after an overflow.
//
// # Concurrency
//
// A Bucket and a Watch are safe for concurrent use.
package kv

// Package mail keeps the two streams in which a fabric's durable messages lie, and
// the consumers by which they are fetched.
//
//	fab_<cluster>_<env>_mail   WorkQueue: a message is there until its receiver is done
//	fab_<cluster>_<env>_dead   what no receiver could handle, for a person to look at
//	mb-<pid>                   the consumer of the first that is one process's mailbox
//
// It knows JetStream and nothing of messages, senders and inboxes: those are package
// fabric's.
//
// # Guarantees
//
// A stream that exists is checked and never changed. What the server has no room for
// it refuses, so that the sender knows; it drops nothing but what is older than the
// age that the streams' creator set. A stream that was lost and is made again numbers
// its messages above all that it had before, if the wall clock did not go back.
//
// # Failure handling
//
// What may pass (no leader, a server that is away) is tried again until the context
// ends; a wrong setting, a missing permission and a server without JetStream are
// errors at once.
//
// # Concurrency
//
// An [Office] is safe for concurrent use.
package mail

package fabric

import (
	"time"

	"github.com/natsfabric/natsfabric/internal/roster"
)

// A Member is one process in a fabric's view.
type Member struct {
	PID PID
	// Incarnation tells one life of a PID from the next: it grows with every
	// start of a process under the PID, and when a node rejoins.
	Incarnation uint64
	Host        string
	// Since is when the process joined, by its own clock. A node that rejoins keeps it.
	Since time.Time
	Meta  map[string]string
}

// A View is one numbered snapshot of the members, sorted by PID. Two nodes that
// have the same Epoch have the same Members. It must not be modified.
type View struct {
	Epoch   uint64
	Members []Member
}

// A ChangeKind says what a [Change] is about.
type ChangeKind uint8

const (
	// Joined: the member is new, or a new incarnation of its PID.
	Joined ChangeKind = iota + 1
	// Synced: every member that was present when the iteration began has been
	// reported. Sent once; Member is empty.
	Synced
	// Left: the member left by itself.
	Left
	// Failed: the member ended without a word, as the Reason of the [Change] says. One
	// that failed for another reason than [LeaseOver] may be alive: then it is back,
	// with [Joined] and the same incarnation, when it is found at its next renewal, or
	// at the second in any case.
	Failed
	// Updated: the member's Meta changed.
	Updated
	// Suspected: there are signs that the member has ended. It is still one: [Alive],
	// [Left] or [Failed] follows.
	Suspected
	// Alive: a member that was suspected was found, or has renewed its lease.
	Alive
	// Stale, of balance groups only: this member itself has not been able to renew its
	// lease for a while, and may not know of newer changes.
	Stale
)

var changeNames = [...]string{
	Joined: "join", Synced: "synced", Left: "leave", Failed: "fail", Updated: "update", Suspected: "suspect", Alive: "alive", Stale: "stale",
}

// String returns "join", "synced", "leave", "fail", "update", "suspect", "alive" or
// "stale".
func (k ChangeKind) String() string { return changeNames[k] }

// A Reason says by what a member was found to have [Failed].
type Reason uint8

const (
	// LeaseOver: its lease ran out, or it was replaced under its PID.
	LeaseOver Reason = iota + 1
	// ConnClosed: its connection was closed from its side, which did not come back.
	ConnClosed
	// ConnDropped: the server closed its connection, and it did not come back.
	ConnDropped
	// Unreachable: messages to it found no receiver.
	Unreachable
)

var reasonNames = [...]string{LeaseOver: "lease", ConnClosed: "closed", ConnDropped: "dropped", Unreachable: "unreachable"}

// String returns "lease", "closed", "dropped" or "unreachable", and "" for no reason.
func (r Reason) String() string { return reasonNames[r] }

// reasonOf is the reason of a sign.
func reasonOf(s roster.Sign) Reason {
	switch s {
	case roster.Closed:
		return ConnClosed
	case roster.Dropped:
		return ConnDropped
	case roster.Unheard:
		return Unreachable
	}
	return LeaseOver
}

// A Change is one step from one view to the next.
type Change struct {
	Kind   ChangeKind
	Member Member
	Epoch  uint64
	Reason Reason // of Failed
}

// An EventKind says what an [Event] is about.
type EventKind uint8

const (
	// Disconnected: the connection to NATS is down; the node keeps trying.
	Disconnected EventKind = iota + 1
	// Reconnected: it is back.
	Reconnected
	// Lost: the lease ended. Terms and shares have ended before this is reported;
	// the node tries to get a lease again.
	Lost
	// Rejoined: the node holds its PID again, under the Incarnation of the event.
	Rejoined
	// Misconfigured: somebody has changed the bucket's settings; Err is a
	// [*BucketConfigError]. Nothing ends, but what the setting protects from can
	// happen now. They are looked at every 30 s, or
	// 0.2 s for each member if that is longer. Once for each change.
	Misconfigured
	// Mended: the settings are right again.
	Mended
	// Foreign: a record of the bucket is not the fabric's; Err is a
	// [*ForeignRecordError]. Reported by the node that coordinates the members, for
	// the records of PIDs and sessions.
	Foreign
)

var eventNames = [...]string{
	Disconnected: "disconnected", Reconnected: "reconnected", Lost: "lost", Rejoined: "rejoined",
	Misconfigured: "misconfigured", Mended: "mended", Foreign: "foreign",
}

// String returns the kind's name in lower case.
func (k EventKind) String() string { return eventNames[k] }

// An Event is something that happened to this node itself.
type Event struct {
	Kind        EventKind
	Incarnation uint64 // of Rejoined
	Err         error  // the cause of Disconnected and Lost, if known; what is wrong
}

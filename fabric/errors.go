package fabric

import (
	"errors"
	"fmt"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/token"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrPIDInUse: another living process holds the PID. See [PIDInUseError].
	ErrPIDInUse = errors.New("fabric: PID in use")
	// ErrNoPeer: nobody holds that PID: the server knows no receiver, and the PID
	// is neither in the view nor claimed.
	ErrNoPeer = errors.New("fabric: no such peer")
	// ErrUnreachable: the PID is held, but nobody receives for it at the moment
	// (it reconnects, has just joined, or takes no messages).
	ErrUnreachable = errors.New("fabric: peer unreachable")
	// ErrNoReceiver: the server knows nobody who serves that service, or has joined
	// that topic, at the moment.
	ErrNoReceiver = errors.New("fabric: no receiver")
	// ErrInboxFull: the receiver's inbox is full and refused the message.
	ErrInboxFull = errors.New("fabric: inbox full")
	// ErrUnknownOutcome: no acknowledgement came in time. The message may have
	// arrived, or may yet.
	ErrUnknownOutcome = errors.New("fabric: outcome unknown")
	// ErrMailboxFull: the receiver's mailbox holds as many messages of this sender as
	// it may, or the mail stream is full. Nothing was stored.
	ErrMailboxFull = errors.New("fabric: mailbox full")
	// ErrNoMail: the mail stream is not there, or has nobody who writes to it at the
	// moment. Nothing was stored.
	ErrNoMail = errors.New("fabric: mail stream not available")
	// ErrStream: a stream of the fabric's exists and is not set up as one. See
	// [StreamError].
	ErrStream = errors.New("fabric: stream not usable")
	// ErrTooLarge: the message is larger than the receiver keeps ([Inbox].Bytes), or what
	// must be one publish (see [Reliable]) than the server's max_payload.
	ErrTooLarge = errors.New("fabric: message too large")
	// ErrDisconnected: the connection is down at the moment; nothing was sent.
	ErrDisconnected = errors.New("fabric: disconnected")
	// ErrClosed: the node has left, or is leaving.
	ErrClosed = errors.New("fabric: node closed")
	// ErrStreamAborted: the other end of a stream gave it up, or did not take it.
	ErrStreamAborted = errors.New("fabric: stream aborted")
	// ErrStreamStalled: the writer of a stream is gone.
	ErrStreamStalled = errors.New("fabric: stream stalled")
	// ErrDraining: the node is leaving and sends nothing new. See [Node.Drain].
	ErrDraining = errors.New("fabric: node is draining")
	// ErrPassive: a passive node cannot do this.
	ErrPassive = errors.New("fabric: node is passive")
	// ErrFull: the fabric has as many members as a view holds, thousands. Those who
	// came first stay.
	ErrFull = errors.New("fabric: no room for another member")
	// ErrNotCandidate: a node of [RoleMember] or [RoleObserver] leads nothing, and asks no
	// leader to hand over.
	ErrNotCandidate = lease.ErrNotCandidate
	// ErrNotRequest: a reply to a message that did not ask for one.
	ErrNotRequest = errors.New("fabric: message is not a request")
	// ErrReplied: the request was answered before.
	ErrReplied = errors.New("fabric: request already answered")
	// ErrLost: the lease ended before it was renewed, or another process ended it.
	ErrLost = errors.New("fabric: lease lost")
	// ErrConnClosed: the NATS connection was closed for good.
	ErrConnClosed = errors.New("fabric: connection closed")
	// ErrConnect: no server was reached before the context ended.
	ErrConnect = errors.New("fabric: cannot connect")
	// ErrNoJetStream: the server, or the account on it, has no JetStream.
	ErrNoJetStream = errors.New("fabric: no JetStream")
	// ErrOldServer: the server's JetStream API level is below 1 (NATS 2.11).
	ErrOldServer = errors.New("fabric: server too old")
	// ErrPermission: the server's permissions do not allow what a node needs.
	// See [PermissionError].
	ErrPermission = kv.ErrPermission
	// ErrConfig: a field of a Config is not usable. See [ConfigError].
	ErrConfig = errors.New("fabric: bad configuration")
	// ErrBucketConfig: a setting of the bucket is not a fabric's. See
	// [BucketConfigError].
	ErrBucketConfig = kv.ErrBucketConfig
	// ErrForeignRecord: a record of the bucket is not the fabric's. It neither grants
	// nor revokes, and is not overwritten; over a PID's claim it ends the node that had
	// it. See [ForeignRecordError].
	ErrForeignRecord = kv.ErrForeign
	// ErrBucket: the bucket exists but is not set up as a fabric's, or holds a
	// record that is not the fabric's.
	ErrBucket = errors.New("fabric: bucket not usable")
)

// A NameError says which name was refused and why.
type NameError = token.Error

// A ConfigError says which field of a Config cannot be used, and why. It wraps
// [ErrConfig].
type ConfigError struct {
	Field  string
	Reason string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("fabric: Config.%s: %s", e.Field, e.Reason)
}
func (e *ConfigError) Unwrap() error { return ErrConfig }

// A BucketConfigError names a setting of the bucket, what it is, and what a fabric
// needs. It wraps [ErrBucketConfig].
type BucketConfigError = kv.ConfigError

// A ForeignRecordError names the key of a record that is not the fabric's. It wraps
// [ErrForeignRecord].
type ForeignRecordError = kv.ForeignError

// A PIDInUseError says who holds the PID. It wraps [ErrPIDInUse].
type PIDInUseError struct {
	PID   PID
	Host  string
	Since time.Time
}

func (e *PIDInUseError) Error() string {
	return fmt.Sprintf("fabric: PID %s in use on host %s since %s", e.PID, e.Host, e.Since.Format(time.RFC3339))
}
func (e *PIDInUseError) Unwrap() error { return ErrPIDInUse }

// A PermissionError names the subject that the server's permissions refuse. It
// wraps [ErrPermission].
type PermissionError = kv.PermissionError

// A StreamError names the setting of an existing stream that a fabric cannot use. It
// wraps [ErrStream].
type StreamError struct {
	Stream, Field string
	Want, Got     any
}

func (e *StreamError) Error() string {
	return fmt.Sprintf("fabric: stream %s: %s is %v, want %v", e.Stream, e.Field, e.Got, e.Want)
}
func (e *StreamError) Unwrap() error { return ErrStream }

// A RemoteError is the error that the handler of a request, or of a message to be
// acknowledged, returned: as text, with a Code if the handler's error was, or
// wrapped, a *RemoteError with one.
type RemoteError struct {
	PID     PID    // who answered; ignored in what a handler returns
	Code    string // for programs; as [Message].Type, at most [MaxType] letters and digits
	Message string
}

func (e *RemoteError) Error() string {
	if e.PID == "" {
		return e.Message
	}
	return fmt.Sprintf("%s answered: %s", e.PID, e.Message)
}

package fabric

import "github.com/nats-io/nats.go"

// A PID is the name of a process in a fabric.
type PID string

const (
	// Everyone, as a Message's To, addresses all members but the sender.
	Everyone PID = "*"
	// External is the From of a message that a plain NATS client published.
	External PID = "ext"
)

// A Message is what one process sends another.
type Message struct {
	// From is the sender, taken from the subject, never from the content. Set by
	// the receiving node; ignored when sending.
	From PID
	// To is the receiver, or [Everyone]. A received broadcast has To Everyone.
	To PID
	// ID tells the messages of one sender apart. Zero in a Message to be sent
	// lets the node choose the next one.
	ID uint64
	// Header is optional. A message with one costs about twice the CPU.
	// Keys that begin with "Nats-" or "Fab-" are refused.
	Header nats.Header
	// Data belongs to the receiver once received, and must not be changed by the
	// sender until Send returned.
	Data []byte
}

// An Undeliverable is a message that has no receiver. Err wraps [ErrNoPeer] or
// [ErrUnreachable].
type Undeliverable struct {
	To  PID
	ID  uint64
	Err error
}

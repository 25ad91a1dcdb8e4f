package fabric

import "strconv"

// A Mode says what is promised of a message, and so what sending it costs and what
// the nil that [Node.SendMsg] returns means. The zero Mode, in a [Message], is
// [Config].Mode.
type Mode uint8

const (
	// Fast: it was handed to the connection and arrives at most once. Nothing comes
	// back but bad news: [Node.Flush] and Config.OnUndeliverable tell of messages that
	// found no receiver, or a full inbox. The default.
	Fast Mode = 1 + iota
	// Acked: the receiver has it, as far as [Message].Ack says. It arrives at most
	// once. Without an answer in time the error wraps [ErrUnknownOutcome]: it may have
	// arrived. Each takes a round trip; several may be under way.
	Acked
	// Reliable: it is on its way, on a link that delivers each message once and in the
	// order of the calls, over reconnects and restarts of the server, as long as both
	// processes live. When the receiver does not keep up, the call waits for it, until
	// ctx ends; it may return long before the message arrives. What cannot arrive any
	// more, because the receiver has left, failed or begun anew, is reported as in mode
	// Fast; one that may have arrived wraps [ErrUnknownOutcome]. [Node.Flush] waits
	// until everything has.
	//
	// A message of mode Fast or Acked, a request or an answer that is larger than 256
	// KiB, or three quarters of the server's max_payload, is sent so, too, in parts, and
	// takes its place among those of mode Reliable. Messages of mode Durable, to topics
	// and to services, questions of Gather, and answers to [External] are one publish:
	// what does not fit the server's max_payload is [ErrTooLarge].
	Reliable
	// Durable: the fabric's mail stream has stored it, for a process that may be down or
	// has never joined: it is received by the process that holds the PID and has a
	// [Config].Mailbox, at least once, each time until [Message.Done] says that it was
	// handled. Without an answer in time the error wraps [ErrUnknownOutcome].
	Durable
)

// String returns the mode's name, lower case.
func (m Mode) String() string {
	switch m {
	case 0:
		return "default"
	case Fast:
		return "fast"
	case Acked:
		return "acked"
	case Reliable:
		return "reliable"
	case Durable:
		return "durable"
	}
	return "mode " + strconv.Itoa(int(m))
}

// known reports whether a message can have the mode.
func (m Mode) known() bool { return m <= Durable }

// modeOf is the mode of a message that came as kind k.
func modeOf(k kind) Mode {
	if k == kindAccept || k == kindHandle {
		return Acked
	}
	return Fast
}

// An Ack says when the sender of a message of Mode [Acked] is told that it arrived.
type Ack uint8

const (
	// Accepted into the receiver's inbox. The default.
	Accepted Ack = iota
	// Handled: the receiver's handler returned, or its program called
	// [Message.Done]. The handler's error comes back as a [*RemoteError].
	Handled
)

// String returns the name, lower case.
func (a Ack) String() string {
	switch a {
	case Accepted:
		return "accepted"
	case Handled:
		return "handled"
	}
	return "ack " + strconv.Itoa(int(a))
}

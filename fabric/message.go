package fabric

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// A PID is the name of a process in a fabric.
type PID string

const (
	// Everyone, as a Message's To, addresses all members but the sender.
	Everyone PID = "*"
	// External is the From of a message that a plain NATS client published.
	External PID = "ext"
)

// A Message is what one process sends another. A received one belongs to its
// receiver, and only Reply and IsRequest may be called on it concurrently.
type Message struct {
	// From is the sender, taken from the subject, never from the content. Set by
	// the receiving node; ignored when sending.
	From PID
	// To is the receiver, or [Everyone]. A received broadcast of mode Fast that was not
	// sent in parts, and a message to a topic, has To Everyone; other broadcasts are sent
	// to one by one, and have To the receiver.
	To PID
	// Topic, if not empty, addresses those who joined it instead; To is then empty
	// or Everyone. See [Node.Publish].
	Topic string
	// ID tells the messages of one sender apart. Zero in a Message to be sent
	// lets the node choose the next one: 1, 2, 3 and so on in the order of the
	// calls, over sends, broadcasts and requests to whomever. Messages from
	// [External] have ID 0.
	ID uint64
	// Header is optional. A message with one costs about twice the CPU. Keys are
	// visible ASCII without ':'; those that begin with "Nats-" or "Fab-", and
	// "Status" and "Description", are refused, in any case of letters. Line breaks in
	// values arrive as blanks.
	Header nats.Header
	// Type optionally says what Data is, for the receiver; the fabric does not look
	// at it. At most [MaxType] ASCII letters and digits. It costs nothing.
	Type string
	// Mode says what is promised of a message to be sent. Default [Config].Mode. A
	// received one has the Mode it was sent with.
	Mode Mode
	// Ack says when a message of Mode [Acked] is acknowledged.
	Ack   Ack
	large bool // it came in parts: its data counts for the memory of these. Here it takes no room
	// TTL is how long a message of mode Fast may wait for the connection, in the
	// [Config].Offline buffer. Default Offline.TTL; a negative one has it not wait.
	TTL time.Duration
	// Data belongs to the receiver once received, and must not be changed by the
	// sender until Send returned.
	Data []byte

	source *source // nil if it awaits nothing and is not from a node
}

// A source is where a message came from, apart so that messages are small. Those that await
// nothing share one, which does not change.
type source struct {
	nonce string  // of the courier that sent the message; empty if it is not from a node
	asked *asked  // nil if the sender awaits nothing
	link  *inLink // to be told when the program takes the message; nil if none is
}

// asked is what a request, or a message to be acknowledged, adds to its source.
type asked struct {
	source
	courier *courier
	kind    kind
	// id, secret and the nonce are what the address of the answer is rebuilt from.
	id      uint64
	secret  string
	inbox   string // where the answer to a request From External goes, instead
	replied atomic.Bool
	letter  *letter // of kindMail
	attempt int     // of letter, when this message was handed out
}

// ask has the sender of m, a courier of that nonce, await what a says.
func (m *Message) ask(nonce string, a *asked) {
	a.source = source{nonce: nonce, asked: a}
	m.source = &a.source
}

// asked returns nil if the sender awaits nothing.
func (m *Message) asked() *asked {
	if m.source == nil {
		return nil
	}
	return m.source.asked
}

// link returns nil if none awaits that the program takes m.
func (m *Message) link() *inLink {
	if m.source == nil {
		return nil
	}
	return m.source.link
}

// IsRequest reports whether the sender awaits an answer: to a request, an anycast or
// a query. Other messages, and the answer to a request, are none.
func (m *Message) IsRequest() bool { a := m.asked(); return a != nil && a.kind == kindRequest }

// Epoch tells the lives of a sender apart: From, Epoch and ID together name one message,
// if the sender leaves the choice of its IDs to the node, or never has two messages of
// one ID. It is chosen at random by each Join, and the same for all messages of that node,
// over lapses of its lease. It is empty for what is From [External], and for answers.
func (m *Message) Epoch() string {
	if m.source == nil {
		return ""
	}
	return m.source.nonce
}

// Reply answers a request, once: afterwards it returns [ErrReplied]. It returns
// [ErrNotRequest] if m is none, [ErrTooLarge] if it came from [External] and data does
// not fit the server's max_payload, [ErrDisconnected] or [ErrClosed]; after these, it may
// be tried again. Whether the requester still waits is not known, and nil is no
// proof that it got the answer. ctx is only looked at before anything is sent, but bounds
// the wait for room of an answer that is sent in parts (see [Reliable]).
func (m *Message) Reply(ctx context.Context, data []byte) error {
	return m.ReplyMsg(ctx, &Message{Data: data})
}

// ReplyMsg is [Message.Reply] with the Type of answer. It does not look at its
// other fields but Data.
func (m *Message) ReplyMsg(ctx context.Context, answer *Message) error {
	if !m.IsRequest() {
		return ErrNotRequest
	}
	if err := checkType(answer.Type); err != nil {
		return fmt.Errorf("reply to %s: %w", m.From, err)
	}
	return m.reply(ctx, kindAnswer, answer.Type, answer.Data)
}

// Done tells the sender of a message of Mode [Acked] and Ack [Handled] that it was
// handled, or with an error that and why it was not. [Node.Handle] does so by
// itself; it is for who gets messages otherwise.
//
// Of a message of Mode [Durable] it says that it need not be delivered again, or with
// an error that it must be: after [Mailbox].Backoff, or, if it was the last of its
// attempts, it becomes a dead letter with that error as the reason. A process that
// does not call it gets no more mail once it has [Mailbox].InFlight of them.
//
// Of other messages it does nothing and returns nil; a second time it returns
// [ErrReplied].
func (m *Message) Done(ctx context.Context, err error) error {
	switch a := m.asked(); {
	case m.isMail():
		return m.settle(ctx, err)
	case a == nil || a.kind != kindHandle:
		return nil
	case err != nil:
		code, text := errorText(err)
		return m.reply(ctx, kindError, code, text)
	}
	return m.reply(ctx, kindAck, "", nil)
}

// target names whom m is for.
func (m *Message) target() string {
	if m.Topic != "" {
		return "topic " + m.Topic
	}
	return string(m.To)
}

func (m *Message) reply(ctx context.Context, k kind, typ string, data []byte) error {
	if ctx.Err() != nil {
		return fmt.Errorf("reply to %s: %w", m.From, context.Cause(ctx))
	}
	a := m.asked()
	if !a.replied.CompareAndSwap(false, true) {
		return ErrReplied
	}
	if err := a.courier.answer(ctx, m, k, typ, data); err != nil {
		a.replied.Store(false)
		return fmt.Errorf("reply to %s: %w", m.From, err)
	}
	return nil
}

// size is what a message counts for in [Inbox].Bytes.
func (m *Message) size() int64 { return int64(len(m.Data) + textOf(m.Header)) }

// textOf returns how many bytes are in a header.
func textOf(h nats.Header) (n int) {
	if len(h) == 0 { // as most; a loop over nothing costs more
		return 0
	}
	for key, values := range h {
		for _, v := range values {
			n += len(key) + len(v)
		}
	}
	return n
}

// An Undeliverable is a message that has no receiver. It is the error that
// [Node.Flush] joins, and the argument of [Config].OnUndeliverable.
type Undeliverable struct {
	To PID
	// ID is the message's, or 0 if only the receiver is known.
	ID uint64
	// Err wraps [ErrNoPeer], [ErrUnreachable], [ErrInboxFull], [ErrDisconnected] (it was
	// too long in the Offline buffer), [ErrTooLarge], or is a [PermissionError]; of what
	// was sent in mode Reliable and may have arrived it wraps [ErrUnknownOutcome], too.
	// Where SendMsg and Gather return it, it is the error of that receiver.
	Err error
}

// Error names the receiver and the message.
func (u Undeliverable) Error() string {
	return fmt.Sprintf("message %d to %s: %v", u.ID, u.To, u.Err)
}

// Unwrap returns u.Err.
func (u Undeliverable) Unwrap() error { return u.Err }

// Package clustertalk is the interface of ClusterTalk (pkhadilkar/cluster) over a
// [fabric.Node]: envelopes in two channels. A program written for it changes its import
//
//	import cluster "github.com/natsfabric/natsfabric/fabric/classic/clustertalk"
//
// and its constructor: fabric.Join instead of the proxy and the config file, then
// [New]. Its pid is the node's PID, an integer.
//
// # Guarantees
//
// What ClusterTalk may lose in silence arrives here, once and in the order of the
// outbox, as long as both processes live, over reconnects and restarts of the NATS
// server: that is what [DefaultMode] promises. A receiver that does not empty its inbox
// makes the outbox of who sends to it fill. What cannot be sent is counted in
// [Member.Stats] and told to Config.OnError; what turns out later not to have arrived,
// because the receiver has left or failed, is what [Member.Close], or the node's
// OnUndeliverable, reports.
//
// # What Msg can be
//
// Strings, byte slices, nil, booleans, integers, floats, slices of these, and
// map[string]string, map[string]int, map[string]any and []any arrive as what they are.
// In maps and slices of any, numbers arrive as float64. Any other type that programs
// register with gob, as ClusterTalk has it, needs Config.Gob on both sides.
//
// Members that do not have this package are sent plain messages, and their messages
// without a Type arrive as a []byte, if their PIDs are integers. Requests are answered
// with an error.
package clustertalk

import (
	"context"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/classic/internal/channel"
)

// BROADCAST as an Envelope's Pid addresses all peers.
const BROADCAST = channel.Everyone

// Defaults of [Config].
const (
	DefaultMode     = channel.DefaultMode
	DefaultCapacity = 1000
)

// Envelope represents a message on the cluster's network.
type Envelope struct {
	// Pid is the receiver, or BROADCAST, on the sender's side, and the sender on the
	// receiver's side.
	Pid int
	// MsgId is for the program, for example to find duplicates. The fabric does not
	// look at it.
	MsgId int64
	// Msg is the message.
	Msg any
}

// A Server is what ClusterTalk calls one. A [*Member] is a Server.
type Server interface {
	// Pid is the id of this server.
	Pid() int
	// Peers are the ids of the others, sorted.
	Peers() []int
	// Outbox is the channel to send messages to others. Sending blocks when it is
	// full.
	Outbox() chan *Envelope
	// Inbox is the channel of messages from others.
	Inbox() chan *Envelope
}

// Config says how envelopes travel. The zero value is usable.
type Config struct {
	// Mode is that of the messages. Default [DefaultMode].
	Mode fabric.Mode
	// Capacity is that of each channel. Default [DefaultCapacity], as in ClusterTalk;
	// less than 0 is none. Behind the inbox is the node's own.
	Capacity int
	// Gob has values of other types encoded, and decoded, by encoding/gob. For peers
	// that are trusted only: gob is not made for hostile input.
	Gob bool
	// OnError is told of each envelope that could not be sent, and, with nil, of each
	// message that could not be taken for an envelope. One call at a time; while it
	// runs nothing is sent, or nothing received.
	OnError func(*Envelope, error)
}

// Stats counts envelopes. A broadcast counts once.
type Stats struct {
	Sent     uint64 // were handed to the node
	Received uint64 // were put into the inbox
	Failed   uint64 // could not be sent
	Foreign  uint64 // messages that are no envelopes, dropped
}

// A Member is a node as a [Server].
type Member struct{ s *channel.Server[Envelope] }

// New gives node the interface of ClusterTalk. It takes all that the node receives.
// The node stays the caller's: [Member.Close], then [fabric.Node.Leave]. The error is a
// [fabric.ConfigError] if the PID is no integer.
func New(node *fabric.Node, cfg Config) (*Member, error) {
	if cfg.Capacity == 0 {
		cfg.Capacity = DefaultCapacity
	}
	s, err := channel.New(node, channel.Config[Envelope]{
		Content: channel.Content{Gob: cfg.Gob}, Mode: cfg.Mode, Capacity: cfg.Capacity, OnError: cfg.OnError,
		Open: func(e *Envelope) channel.Letter { return channel.Letter{Peer: e.Pid, ID: e.MsgId, Msg: e.Msg} },
		Seal: func(l channel.Letter) *Envelope { return &Envelope{Pid: l.Peer, MsgId: l.ID, Msg: l.Msg} },
	})
	if err != nil {
		return nil, err
	}
	return &Member{s}, nil
}

// Pid returns the node's PID.
func (m *Member) Pid() int { return m.s.Pid() }

// Peers returns the PIDs of the other members that are integers, sorted. It does no
// I/O.
func (m *Member) Peers() []int { return m.s.Peers() }

// Outbox returns the channel to send from. It may be closed when nothing more is to
// be sent. After Close, or when the node has ended, nothing is taken from it.
func (m *Member) Outbox() chan *Envelope { return m.s.Outbox() }

// Inbox returns the channel of what others sent. It is closed by Close, and when the
// node has ended.
func (m *Member) Inbox() chan *Envelope { return m.s.Inbox() }

// Stats returns the counts so far.
func (m *Member) Stats() Stats { return Stats(m.s.Stats()) }

// Close sends what is in the outbox and waits until that has arrived, as
// [fabric.Node.Flush] does and with its error, and closes the inbox. If ctx ends
// first, what is left is not sent. Envelopes that nobody has received are dropped.
func (m *Member) Close(ctx context.Context) error { return m.s.Close(ctx) }

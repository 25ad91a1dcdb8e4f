// Package raft is the interface of the cluster package of vibhor1403/Raft over a
// [fabric.Node]: envelopes in two channels. (It has nothing to do with the consensus
// algorithm; for a leader, see package election.) A program written for it changes its
// import
//
//	import cluster "github.com/natsfabric/natsfabric/fabric/classic/raft"
//
// and its constructor: fabric.Join, then [New]. Its pid is the node's PID, an integer;
// of config.json only the pids are left, and those only if servers are to be peers
// before they have joined.
//
// # Guarantees
//
// Envelopes arrive, once and in the order of the outbox, as long as both processes
// live, over reconnects and restarts of the NATS server: that is what [DefaultMode]
// promises. A receiver that does not empty its inbox makes the outbox of who sends to
// it wait. What cannot be sent is counted and told to Config.OnError; what turns out
// later not to have arrived, because the receiver has left or failed, is what
// [Member.Close], or the node's OnUndeliverable, reports.
//
// With [fabric.Durable] as Config.Mode, and a Mailbox in each node's Config, envelopes
// are kept for servers that do not run yet, or not at the moment: those that Config.Peers
// names, or that have joined before. Each arrives at least once; one that the program had
// not taken from the inbox when the server ended may come after later ones.
//
// # What Msg can be
//
// What encoding/json can encode; it arrives as JSON without a type: numbers as float64,
// structs as map[string]any, byte slices as base64. Strings arrive as they are.
package raft

import (
	"context"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/classic/internal/channel"
)

// BROADCAST as an Envelope's SendTo addresses all peers.
const BROADCAST = channel.Everyone

// DefaultMode is that of a [Config] without one.
const DefaultMode = channel.DefaultMode

// Envelope describes a message to or from another server.
type Envelope struct {
	// SendTo is the pid of the receiver, or BROADCAST.
	SendTo int
	// SendBy is the pid of the sender. It is not looked at when sending: a server
	// cannot send as another.
	SendBy int
	// MsgId is for the program. The fabric does not look at it.
	MsgId int64
	// Msg is the message.
	Msg any
}

// A Server is what vibhor1403/Raft calls one. A [*Member] is a Server.
type Server interface {
	// Pid is the id of this server.
	Pid() int
	// Peers are the ids of the others, sorted.
	Peers() []int
	// Outbox is the channel to send messages to others.
	Outbox() chan *Envelope
	// Inbox is the channel of messages from others.
	Inbox() chan *Envelope
	// MsgRcvd is how many messages were received.
	MsgRcvd() int
	// MsgSent is how many messages were sent. A broadcast is one.
	MsgSent() int
}

// Config says how envelopes travel. The zero value is usable.
type Config struct {
	// Peers are the pids of all servers, joined or not, as in config.json; the
	// server's own is left out. A broadcast goes to each. Default: the members, as
	// they come and go.
	Peers []int
	// Mode is that of the messages. Default [DefaultMode].
	Mode fabric.Mode
	// Silence closes the inbox when nothing has come for so long, as
	// vibhor1403/Raft does after two seconds. Default: never.
	Silence time.Duration
	// OnError is told of each envelope that could not be sent, and, with nil, of each
	// message that could not be taken for an envelope. One call at a time; while it
	// runs nothing is sent, or nothing received.
	OnError func(*Envelope, error)
}

// A Member is a node as a [Server].
type Member struct{ s *channel.Server[Envelope] }

// New gives node the interface of vibhor1403/Raft. It takes all that the node receives.
// The node stays the caller's: [Member.Close], then [fabric.Node.Leave]. The error is a
// [fabric.ConfigError] if the PID is no integer.
func New(node *fabric.Node, cfg Config) (*Member, error) {
	m := &Member{}
	s, err := channel.New(node, channel.Config[Envelope]{
		Content: channel.Content{Untyped: true}, Mode: cfg.Mode, Peers: cfg.Peers, Silence: cfg.Silence, OnError: cfg.OnError,
		Open: func(e *Envelope) channel.Letter { return channel.Letter{Peer: e.SendTo, ID: e.MsgId, Msg: e.Msg} },
		Seal: func(l channel.Letter) *Envelope {
			return &Envelope{SendTo: l.To, SendBy: l.Peer, MsgId: l.ID, Msg: l.Msg}
		},
	})
	if err != nil {
		return nil, err
	}
	m.s = s
	return m, nil
}

// Pid returns the node's PID.
func (m *Member) Pid() int { return m.s.Pid() }

// Peers returns Config.Peers but this server, or the PIDs of the other members that are
// integers, sorted. It does no I/O.
func (m *Member) Peers() []int { return m.s.Peers() }

// Outbox returns the channel to send from. It may be closed when nothing more is to
// be sent. After Close, or when the node has ended, nothing is taken from it.
func (m *Member) Outbox() chan *Envelope { return m.s.Outbox() }

// Inbox returns the channel of what others sent. It is closed by Close, by the silence
// that Config has, and when the node has ended.
func (m *Member) Inbox() chan *Envelope { return m.s.Inbox() }

// MsgRcvd returns how many envelopes were put into the inbox.
func (m *Member) MsgRcvd() int { return int(m.s.Stats().Received) }

// MsgSent returns how many envelopes were handed to the node.
func (m *Member) MsgSent() int { return int(m.s.Stats().Sent) }

// MsgFailed returns how many envelopes could not be sent.
func (m *Member) MsgFailed() int { return int(m.s.Stats().Failed) }

// MsgForeign returns how many messages came that are no envelopes, and were dropped.
func (m *Member) MsgForeign() int { return int(m.s.Stats().Foreign) }

// Close sends what is in the outbox and waits until that has arrived, as
// [fabric.Node.Flush] does and with its error, and closes the inbox. If ctx ends
// first, what is left is not sent. Envelopes that nobody has received are dropped.
func (m *Member) Close(ctx context.Context) error { return m.s.Close(ctx) }

// Package cluster is the interface of BurntSushi/cluster over a [fabric.Node]: remotes
// that come and go, callbacks that tell of them, and messages to them. A program
// written for it changes its import, and its constructor to fabric.Join and [New]. What
// it set with SetReconnectInterval and SetHealthyInterval is NATS's and the lease's
// business now.
//
// # Guarantees
//
// Every member of the fabric is a remote by itself; nobody has to be added. A message to
// a remote arrives once and in the order of the calls, as long as both processes live,
// over reconnects and restarts of the NATS server: that is what [DefaultMode] promises. A
// remote that does not receive makes Send wait, at most Config.Timeout.
//
// # Concurrency
//
// Everything is safe for concurrent use. Callbacks are called one at a time, in the
// order of the changes, with no lock held.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

// Defaults of [Config].
const (
	DefaultMode     = fabric.Reliable
	DefaultCapacity = 100
	DefaultTimeout  = 10 * time.Second
)

// A Remote is another process: its PID.
type Remote string

// String returns the PID.
func (r Remote) String() string { return string(r) }

// A Message is what a remote sent.
type Message struct {
	// From is the sender.
	From Remote
	// Payload is the content.
	Payload []byte
}

// Config says how messages travel. The zero value is usable.
type Config struct {
	// Mode is that of the messages. Default [DefaultMode].
	Mode fabric.Mode
	// Capacity is that of Inbox. Default [DefaultCapacity]. Behind it is the node's
	// own inbox.
	Capacity int
	// Timeout bounds Send, Broadcast and Add. Default [DefaultTimeout].
	Timeout time.Duration
	// OnError is told what became of a broadcast that failed, and of a request that
	// came: here nobody answers. It may be called by several goroutines.
	OnError func(error)
}

// A Node is one process in the cluster. The messages to it are in Inbox. When that is
// full they stay in the fabric's inbox, and when that is, too, their senders wait.
type Node struct {
	Inbox <-chan *Message

	node   *fabric.Node
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	watch  watch
}

// CodeNoRequests is that of the error that requests are answered with.
const CodeNoRequests = "NoRequests"

// New gives node the interface of BurntSushi/cluster. It takes all that the node
// receives. The fabric's node stays the caller's: [Node.Close], then
// [fabric.Node.Leave], at which the others see this one removed.
func New(node *fabric.Node, cfg Config) (*Node, error) {
	cfg.Mode = cmp.Or(cfg.Mode, DefaultMode)
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	cfg.Capacity = cmp.Or(cfg.Capacity, DefaultCapacity)
	if cfg.Capacity < 0 || cfg.Timeout < 0 {
		return nil, &fabric.ConfigError{Field: "Capacity or Timeout", Reason: "it is negative"}
	}
	inbox := make(chan *Message, cfg.Capacity) // a full one leaves messages in the node's inbox
	n := &Node{Inbox: inbox, node: node, cfg: cfg}
	n.ctx, n.cancel = context.WithCancel(node.Context())
	n.watch.init()
	n.wg.Go(func() { n.receive(inbox) })
	n.wg.Go(func() { n.watch.run(n.ctx) })
	synced := make(chan struct{})
	n.wg.Go(func() { n.watch.follow(n.ctx, n.node, synced) })
	select {
	case <-synced: // at once: the view is there
	case <-n.ctx.Done():
	}
	return n, nil
}

// Addr returns what this node is to others.
func (n *Node) Addr() Remote { return Remote(n.node.PID()) }

// String returns the PID.
func (n *Node) String() string { return string(n.node.PID()) }

// Add waits until the remote is known, at most Config.Timeout. Nothing has to be
// added: it is for programs that add a remote and then send to it. The error wraps
// [fabric.ErrNoPeer].
func (n *Node) Add(remote string) error {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Timeout)
	defer cancel()
	var err error
	for c, e := range n.node.Changes(ctx) {
		if e == nil && c.Kind == fabric.Joined && c.Member.PID == fabric.PID(remote) {
			return nil
		}
		err = e
	}
	return fmt.Errorf("add %s: %w: %w", remote, fabric.ErrNoPeer, err)
}

// Remotes returns all remotes, sorted bytewise. It does no I/O.
func (n *Node) Remotes() []Remote {
	n.watch.mu.Lock()
	defer n.watch.mu.Unlock()
	return n.watch.remotes()
}

// Send sends data to a remote. It returns an error that wraps [fabric.ErrNoPeer] if the
// remote is not known, and those of [fabric.Node.SendMsg]. In [DefaultMode] nil means that
// it is on its way: what becomes of it if the remote goes is told by the fabric's
// node, at Flush or in OnUndeliverable, and counted there.
func (n *Node) Send(to Remote, data []byte) error {
	if to != n.Addr() && !n.watch.knows(to) {
		return fmt.Errorf("send to %s: %w", to, fabric.ErrNoPeer)
	}
	return n.send(fabric.PID(to), data)
}

// Broadcast sends data to every remote. An error is told to Config.OnError.
func (n *Node) Broadcast(data []byte) {
	if err := n.send(fabric.Everyone, data); err != nil {
		n.tell(err)
	}
}

func (n *Node) send(to fabric.PID, data []byte) error {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Timeout)
	defer cancel()
	return n.node.SendMsg(ctx, &fabric.Message{To: to, Mode: n.cfg.Mode, Data: data})
}

func (n *Node) tell(err error) {
	if n.cfg.OnError != nil {
		n.cfg.OnError(err)
	}
}

var errRequest = errors.New("requests are not answered here")

// receive fills the inbox.
func (n *Node) receive(inbox chan<- *Message) {
	defer close(inbox)
	_ = n.node.Handle(n.ctx, 1, func(ctx context.Context, m *fabric.Message) ([]byte, error) {
		if m.IsRequest() {
			n.tell(fmt.Errorf("request %d from %s: %w", m.ID, m.From, errRequest))
			return nil, &fabric.RemoteError{Code: CodeNoRequests, Message: errRequest.Error()}
		}
		select {
		case inbox <- &Message{Remote(m.From), m.Data}:
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	})
}

// Close closes the Inbox and ends the callbacks; one that runs is waited for, so it
// must not call Close. It returns what [fabric.Node.Flush] does, which waits until what
// was sent has arrived, at most Config.Timeout.
func (n *Node) Close() error {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Timeout)
	defer cancel()
	err := n.node.Flush(ctx)
	n.cancel()
	n.wg.Wait()
	return err
}

package channel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

// Everyone is the pid that addresses all other servers.
const Everyone = -1

// DefaultMode is that of envelopes: none is lost, repeated or out of order while both
// processes live, and an outbox whose receiver does not keep up fills.
const DefaultMode = fabric.Reliable

// Config is what the packages' Configs have in common. E is their envelope.
type Config[E any] struct {
	Content
	Mode     fabric.Mode   // default DefaultMode
	Peers    []int         // default: the members, as they come and go
	Capacity int           // of both channels
	Silence  time.Duration // after which the inbox is closed; 0 is never
	OnError  func(*E, error)

	// Open and Seal convert envelopes.
	Open func(*E) Letter
	Seal func(Letter) *E
}

// A Letter is what all envelopes have.
type Letter struct {
	Peer int // the receiver, or Everyone; of a received one the sender
	To   int // of a received one: this server, or Everyone
	ID   int64
	Msg  any
}

// Stats counts what passed.
type Stats struct {
	Sent, Received, Failed, Foreign uint64
}

// A Server is a node behind two channels.
type Server[E any] struct {
	node   *fabric.Node
	cfg    Config[E]
	pid    int
	outbox chan *E
	inbox  chan *E

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	close  sync.Once
	ending chan struct{} // closed by Close
	empty  chan struct{} // closed when the outbox is not looked at any more

	errMu sync.Mutex // held while OnError runs: one call at a time

	sent, received, failed, foreign atomic.Uint64
}

// New starts a server. The node stays the caller's.
func New[E any](node *fabric.Node, cfg Config[E]) (*Server[E], error) {
	pid, ok := number(node.PID())
	if !ok {
		return nil, &fabric.ConfigError{Field: "PID", Reason: fmt.Sprintf("%q is no integer in decimal", node.PID())}
	}
	cfg.Mode = cmp.Or(cfg.Mode, DefaultMode)
	cfg.Peers = slices.Clone(cfg.Peers)
	if cfg.Capacity < 0 {
		cfg.Capacity = 0
	}
	s := &Server[E]{
		node: node, cfg: cfg, pid: pid,
		outbox: make(chan *E, cfg.Capacity), // a full one makes its program wait
		inbox:  make(chan *E, cfg.Capacity), // a full one leaves messages in the node's inbox
		ending: make(chan struct{}), empty: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(node.Context())
	s.wg.Go(s.send)
	s.wg.Go(s.receive)
	return s, nil
}

// number returns the integer that a PID is.
func number(pid fabric.PID) (int, bool) {
	n, err := strconv.Atoi(string(pid))
	return n, err == nil && n >= 0 && strconv.Itoa(n) == string(pid)
}

// Pid returns the node's PID.
func (s *Server[E]) Pid() int { return s.pid }

// Peers returns the other servers, sorted.
func (s *Server[E]) Peers() []int {
	var pids []int
	if s.cfg.Peers != nil {
		pids = slices.Clone(s.cfg.Peers)
	} else {
		for _, m := range s.node.View().Members {
			if n, ok := number(m.PID); ok {
				pids = append(pids, n)
			}
		}
	}
	slices.Sort(pids)
	return slices.DeleteFunc(slices.Compact(pids), func(n int) bool { return n == s.pid })
}

// Outbox returns the channel that is sent from.
func (s *Server[E]) Outbox() chan *E { return s.outbox }

// Inbox returns the channel that is received into.
func (s *Server[E]) Inbox() chan *E { return s.inbox }

// Stats returns the counts so far.
func (s *Server[E]) Stats() Stats {
	return Stats{s.sent.Load(), s.received.Load(), s.failed.Load(), s.foreign.Load()}
}

// Close sends what the outbox holds, waits until it has arrived, and closes the
// inbox. What still waits when ctx ends is not sent.
func (s *Server[E]) Close(ctx context.Context) error {
	s.close.Do(func() { close(s.ending) })
	var err error
	select {
	case <-s.empty:
		err = s.node.Flush(ctx)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	s.cancel()
	s.wg.Wait()
	return err
}

// send empties the outbox.
func (s *Server[E]) send() {
	defer close(s.empty)
	for {
		select {
		case e, ok := <-s.outbox:
			if !ok {
				return
			}
			s.post(e)
		case <-s.ctx.Done():
			return
		case <-s.ending:
			for s.ctx.Err() == nil {
				select {
				case e, ok := <-s.outbox:
					if !ok {
						return
					}
					s.post(e)
				default:
					return
				}
			}
			return
		}
	}
}

var errNil = errors.New("the envelope is nil")

// post sends one envelope.
func (s *Server[E]) post(e *E) {
	if e == nil {
		s.fail(e, errNil)
		return
	}
	l := s.cfg.Open(e)
	kind, data, err := s.cfg.encode(l.Msg)
	if err != nil {
		s.fail(e, err)
		return
	}
	m := &fabric.Message{Type: tag{l.Peer == Everyone, kind, l.ID}.String(), Mode: s.cfg.Mode, Data: data}
	switch {
	case l.Peer != Everyone:
		m.To = fabric.PID(strconv.Itoa(l.Peer))
		err = s.node.SendMsg(s.ctx, m)
	case s.cfg.Peers == nil:
		m.To = fabric.Everyone
		err = s.node.SendMsg(s.ctx, m)
	default:
		var errs []error
		for _, pid := range s.Peers() {
			m.To = fabric.PID(strconv.Itoa(pid))
			errs = append(errs, s.node.SendMsg(s.ctx, m))
		}
		err = errors.Join(errs...)
	}
	if err != nil {
		s.fail(e, err)
		return
	}
	s.sent.Add(1)
}

func (s *Server[E]) fail(e *E, err error) {
	s.failed.Add(1)
	s.tell(e, err)
}

func (s *Server[E]) tell(e *E, err error) {
	if s.cfg.OnError != nil {
		s.errMu.Lock()
		defer s.errMu.Unlock()
		s.cfg.OnError(e, err)
	}
}

// CodeNoRequests is that of the error that requests are answered with: a channel has
// no answer.
const CodeNoRequests = "NoRequests"

// receive fills the inbox.
func (s *Server[E]) receive() {
	defer close(s.inbox)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	var silence *time.Timer
	if s.cfg.Silence > 0 {
		silence = time.AfterFunc(s.cfg.Silence, cancel)
		defer silence.Stop()
	}
	_ = s.node.Handle(ctx, 1, func(ctx context.Context, m *fabric.Message) ([]byte, error) {
		if silence != nil {
			silence.Stop()
			defer silence.Reset(s.cfg.Silence)
		}
		return nil, s.take(ctx, m)
	})
}

// take puts m into the inbox. Its error goes to a sender that awaits one.
func (s *Server[E]) take(ctx context.Context, m *fabric.Message) error {
	e, err := s.read(m)
	if err != nil {
		s.foreign.Add(1)
		s.tell(nil, fmt.Errorf("message %d of type %q from %s: %w", m.ID, m.Type, m.From, err))
		return err
	}
	select {
	case s.inbox <- e:
		s.received.Add(1)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Server[E]) read(m *fabric.Message) (*E, error) {
	if m.IsRequest() {
		return nil, &fabric.RemoteError{Code: CodeNoRequests, Message: "requests are not answered here"}
	}
	from, ok := number(m.From)
	if !ok {
		return nil, errors.New("the sender's PID is no integer in decimal")
	}
	t, ok := parseType(m.Type)
	if !ok {
		return nil, errors.New("it is no envelope")
	}
	msg, err := s.cfg.decode(t.kind, m.Data)
	if err != nil {
		return nil, err
	}
	to := s.pid
	if t.all || m.To == fabric.Everyone {
		to = Everyone
	}
	return s.cfg.Seal(Letter{Peer: from, To: to, ID: t.id, Msg: msg}), nil
}

package fabric

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/token"
)

// Send hands data to the connection for the process to, which gets it at most
// once, after what this node sent it before in the order of the calls, broadcasts
// included. It does not wait for the receiver: that nobody is there turns out
// later, see [Node.Flush]. That to is not in the view refuses nothing. A send to the
// node itself goes straight to its inbox. data is read until Send returns, with an error or
// without, and not after that.
//
// It returns a [NameError] if to is no legal PID, and an error that wraps
// [ErrTooLarge], [ErrDisconnected] or [ErrClosed] if nothing was sent. In mode Fast ctx is
// only looked at before: a send takes microseconds, unless the server does not read
// what the connection sends, when it blocks until it does. In the other modes
// ([Config].Mode), and of a message that is sent in parts, it bounds the wait.
func (n *Node) Send(ctx context.Context, to PID, data []byte) error {
	return n.courier.send(ctx, to, data)
}

// Broadcast hands data to the connection for every member but this one. Each gets
// it at most once, in the order described at [Node.Send], whose errors it returns.
// It is no error if there are no others.
func (n *Node) Broadcast(ctx context.Context, data []byte) error {
	return n.courier.send(ctx, Everyone, data)
}

// SendMsg is [Node.Send] or, if m.To is [Everyone], [Node.Broadcast], with what
// else a [Message] can have: an ID, a Type, headers and a Mode of the caller's. It does
// not change m, and does not look at m.From. A key that m.Header may not have, and a
// Type that is none, is a [NameError]. An ID of the caller's does not change what the
// node chooses next.
//
// With m.Topic it is [Node.Publish], in Mode Fast only.
//
// What the result means is said at the [Mode]. In a mode other than Fast, Everyone
// is each of the other members of the view, told one by one, in mode Durable each owner of
// a mailbox, too, and the error joins an
// [Undeliverable] for each that failed.
func (n *Node) SendMsg(ctx context.Context, m *Message) error { return n.courier.sendMsg(ctx, m) }

// A dest is what all messages to one process have in common.
type dest struct {
	pid     PID
	subject string
	reply   string  // up to the tag; of plain kindAnswer, where they go
	plain   kind    // of a message that awaits nothing
	head    string  // of such a message without a type: its reply subject up to the id; may be empty
	open    *parcel // the one that may grow; guarded by batcher.mu
	usual   int     // size of the last ones that may not any more; guarded by batcher.mu
	service string  // if pid is nobody in particular
}

// many reports whether messages to d have any number of receivers.
func (d *dest) many() bool { return d.pid == Everyone }

// one reports whether messages to d have one receiver, who is known.
func (d *dest) one() bool { return d.pid != Everyone && d.pid != nobody }

func (c *courier) newDest(to PID) *dest {
	d := &dest{pid: to, subject: c.subj.peer(to), reply: c.subj.reply(c.cfg.pid, to), plain: kindSend}
	if to == Everyone {
		d = &dest{pid: to, subject: c.subj.everyone(), reply: c.subj.reply(c.cfg.pid, nobody), plain: kindBroadcast}
	}
	d.head = d.reply + string(rune(d.plain)) + c.nonce + "."
	return d
}

// dests caches the destinations in use. It is emptied when it has maxDests.
type dests struct {
	last atomic.Pointer[dest]
	mu   sync.RWMutex // guards m
	m    map[PID]*dest
}

const maxDests = 16_384

// keep caches d, and returns the one to be used: that which somebody else was faster to
// cache.
func (s *dests) keep(d *dest) *dest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.m[d.pid]; first != nil {
		return first
	}
	if s.m == nil || len(s.m) >= maxDests {
		s.m = make(map[PID]*dest)
	}
	s.m[d.pid] = d
	return d
}

// dest returns the destination for a PID that a caller handed over.
func (c *courier) dest(to PID) (*dest, error) {
	if d := c.dests.last.Load(); d != nil && d.pid == to {
		return d, nil
	}
	if to == Everyone {
		return c.everyone, nil
	}
	c.dests.mu.RLock()
	d := c.dests.m[to]
	c.dests.mu.RUnlock()
	if d == nil {
		if err := token.CheckPID(string(to)); err != nil {
			return nil, err
		}
		d = c.dests.keep(c.newDest(to))
	}
	c.dests.last.Store(d)
	return d, nil
}

// answersTo returns the destination of what the process to awaits of this one.
func (c *courier) answersTo(to PID) *dest {
	c.answers.mu.RLock()
	d := c.answers.m[to]
	c.answers.mu.RUnlock()
	if d == nil {
		d = &dest{pid: to, reply: c.subj.reply(to, c.cfg.pid), plain: kindAnswer}
		d = c.answers.keep(d)
	}
	return d
}

// sendable says why nothing can be sent, if so.
func (c *courier) sendable(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch {
	case c.closed.Load():
		return ErrClosed
	case c.draining.Load():
		return ErrDraining
	}
	return nil
}

// ready returns the destination to if messages may be sent at all.
func (c *courier) ready(ctx context.Context, to PID) (*dest, error) {
	if err := c.sendable(ctx); err != nil {
		return nil, err
	}
	return c.dest(to)
}

// readyFor is ready for where m goes.
func (c *courier) readyFor(ctx context.Context, m *Message) (*dest, error) {
	if m.Topic == "" {
		return c.ready(ctx, m.To)
	}
	if m.To != "" && m.To != Everyone {
		return nil, &NameError{Field: "pid", Name: string(m.To), Reason: "a message to a topic goes to who has joined it"}
	}
	if err := c.sendable(ctx); err != nil {
		return nil, err
	}
	return c.topicDest(m.Topic)
}

func (c *courier) send(ctx context.Context, to PID, data []byte) error {
	if c.cfg.mode > Fast || len(data) > maxChunk {
		return c.sendMsg(ctx, &Message{To: to, Data: data})
	}
	d, err := c.ready(ctx, to)
	if err == nil {
		err = c.post(d, &outgoing{kind: d.plain, id: c.ids.Add(1), data: data, ttl: c.cfg.offline.TTL})
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	return nil
}

func (c *courier) sendMsg(ctx context.Context, m *Message) error {
	d, err := c.readyFor(ctx, m)
	if err == nil {
		err = cmp.Or(checkHeader(m.Header), checkType(m.Type))
	}
	if err == nil {
		err = c.dispose(ctx, d, m)
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", m.target(), err)
	}
	return nil
}

// dispose sends m as its mode wants it.
func (c *courier) dispose(ctx context.Context, d *dest, m *Message) error {
	o := outgoing{
		kind: d.plain, id: m.ID, typ: m.Type, header: m.Header, data: m.Data,
		ttl: cmp.Or(m.TTL, c.cfg.offline.TTL),
	}
	if o.id == 0 {
		o.id = c.ids.Add(1)
	}
	switch mode := cmp.Or(m.Mode, c.cfg.mode, Fast); {
	case m.Topic != "" && m.Mode > Fast:
		return &ConfigError{"Mode", "messages to a topic are fast: who has joined it is not known"}
	case m.Topic != "":
		return c.post(d, &o)
	case mode == Acked:
		return c.postAcked(ctx, d, m.Ack, &o)
	case mode == Durable:
		return c.mail.post(ctx, d, m.ID != 0, &o)
	case mode == Fast && len(o.data) <= c.chunk():
		return c.post(d, &o)
	case mode == Fast, mode == Reliable:
		return c.postReliable(ctx, d, &o)
	default:
		return &ConfigError{"Mode", mode.String() + " is none"}
	}
}

// An outgoing message is one on its way to the connection.
type outgoing struct {
	kind   kind
	nonce  string // of an answer: whom it is for; otherwise the courier's own
	id     uint64
	secret string // if kind has one
	seq    uint64 // if kind is counted, or kindLink
	steps  string // of kindMulti
	typ    string
	header nats.Header
	data   []byte
	ttl    time.Duration // how long it may wait for the connection; none if not positive
}

// post hands o to the connection, or to the node's own inbox.
func (c *courier) post(d *dest, o *outgoing) error {
	if d.pid == c.cfg.pid {
		return c.postSelf(o)
	}
	if err := c.batcher.post(d, o); err != nil {
		return err
	}
	c.sent.Add(1)
	return nil
}

// postReliable sends o on a link; if d is everyone, on those to each of the other
// members.
func (c *courier) postReliable(ctx context.Context, d *dest, o *outgoing) error {
	if d.pid != Everyone {
		return c.postLinked(ctx, d, o)
	}
	var errs []error
	for _, pid := range c.cfg.others() {
		d, err := c.dest(pid)
		if err == nil {
			one := *o
			one.kind = d.plain
			err = c.postLinked(ctx, d, &one)
		}
		if err != nil {
			errs = append(errs, Undeliverable{To: pid, ID: o.id, Err: err})
		}
	}
	return errors.Join(errs...)
}

// postSelf puts a message to the node itself into its inbox.
func (c *courier) postSelf(o *outgoing) error {
	m := &Message{
		From: c.cfg.pid, To: c.cfg.pid, ID: o.id, Type: o.typ, Mode: modeOf(o.kind),
		Header: cloneHeader(o.header), Data: bytes.Clone(o.data), source: &c.own,
	}
	if o.kind.awaits() {
		m.ask(c.nonce, &asked{courier: c, kind: o.kind, id: o.id, secret: o.secret})
	}
	c.sent.Add(1)
	switch {
	case c.off && o.kind.awaits():
		c.bounced(c.cfg.pid, tag{kind: o.kind, id: o.id, secret: o.secret})
	case c.off:
		c.clerk.add(entry{to: c.cfg.pid, id: o.id, err: ErrUnreachable})
	default:
		c.arrived([]*Message{m}, c.inbox.put([]*Message{m}))
	}
	return nil
}

// cloneHeader returns a copy that shares nothing with h.
func cloneHeader(h nats.Header) nats.Header {
	if len(h) == 0 {
		return nil
	}
	h = maps.Clone(h)
	for key, values := range h {
		h[key] = slices.Clone(values)
	}
	return h
}

func (c *courier) publishError(err error, size int) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return fmt.Errorf("%w: %d bytes and the header, the server takes %d", ErrTooLarge, size, c.nc.MaxPayload())
	}
	return natsError(err)
}

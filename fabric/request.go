package fabric

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Request sends data to the process to and waits for its answer, a message From
// to with the ID of the request. It is sent as by [Node.Send], whose errors it
// returns, and in the same order. Further errors:
//
//   - [ErrNoPeer], [ErrUnreachable]: the server has no receiver. Within a round trip.
//   - [ErrInboxFull]: the receiver refused it.
//   - [*RemoteError]: the receiver's handler returned an error.
//   - the cause of ctx's end, or [context.DeadlineExceeded] when a ctx without a
//     deadline has waited [DefaultRequestTimeout]. The request may or may not have
//     been received; so it ends, too, if the connection breaks while it waits.
//   - [*PermissionError]: the server does not let this node send to to.
func (n *Node) Request(ctx context.Context, to PID, data []byte) (*Message, error) {
	return n.courier.request(ctx, to, data)
}

// A call is somebody who waits for an answer in class r.
type call struct {
	id     uint64
	secret string
	from   PID         // who may answer
	answer chan answer // capacity 1: whoever takes the call from calls sends one
}

// An answer is what ended a call.
type answer struct {
	kind kind // kindRequest: the server's 503
	data []byte
	err  error
}

// calls are the outstanding ones by their id.
type calls struct {
	mu sync.Mutex // guards m
	m  map[uint64]*call
}

func (s *calls) init() { s.m = make(map[uint64]*call) }

func (s *calls) open(id uint64, from PID) *call {
	w := &call{id: id, secret: random(secretLen), from: from, answer: make(chan answer, 1)}
	s.mu.Lock()
	s.m[id] = w
	s.mu.Unlock()
	return w
}

// take removes the call with an id: the one who gets it answers it. It returns
// nil if there is none.
func (s *calls) take(id uint64) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.m[id]
	delete(s.m, id)
	return w
}

// match is take for an answer from the network: nobody gets a call but with its
// secret, and from the process that was asked.
func (s *calls) match(t tag, from PID) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.m[t.id]
	if w == nil || w.secret != t.secret || w.from != from {
		return nil
	}
	delete(s.m, t.id)
	return w
}

// fail ends all calls to a process and reports whether there were any.
func (s *calls) fail(to PID, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	any := false
	for id, w := range s.m {
		if w.from == to {
			delete(s.m, id)
			w.answer <- answer{err: err}
			any = true
		}
	}
	return any
}

func (c *courier) request(ctx context.Context, to PID, data []byte) (*Message, error) {
	if to == Everyone {
		return nil, &NameError{Field: "pid", Name: string(to), Reason: "a request goes to one process"}
	}
	began := time.Now()
	d, err := c.ready(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("request to %s: %w", to, err)
	}
	w := c.calls.open(c.ids.Add(1), to)
	if err := c.ask(d, w, data); err != nil {
		c.calls.take(w.id)
		return nil, fmt.Errorf("request to %s: %w", to, err)
	}
	a, err := c.await(ctx, &c.calls, w)
	if err == nil {
		switch a.kind {
		case kindAnswer:
			return &Message{From: to, To: c.cfg.pid, ID: w.id, Data: a.data}, nil
		case kindError:
			return nil, &RemoteError{PID: to, Message: string(a.data)}
		case kindFull:
			err = ErrInboxFull
		case kindRequest:
			err = c.verdict(ctx, to)
		default:
			err = a.err
		}
	} else if err != ErrClosed {
		err = fmt.Errorf("no answer to message %d within %v: %w", w.id, time.Since(began).Round(time.Millisecond), err)
	}
	return nil, fmt.Errorf("request to %s: %w", to, err)
}

// ask sends the request of the call w.
func (c *courier) ask(d *dest, w *call, data []byte) error {
	if d.pid == c.cfg.pid {
		return c.askSelf(w, data)
	}
	// A borrowed connection's reconnect buffer would take it and answer nothing.
	if !c.nc.IsConnected() {
		if c.nc.IsClosed() {
			return natsError(nats.ErrConnectionClosed)
		}
		return ErrDisconnected
	}
	var buf [128]byte
	b := strconv.AppendUint(append(buf[:0], d.request...), w.id, 10)
	b = append(append(b, '-'), w.secret...)
	if err := c.nc.PublishRequest(d.subject, string(b), data); err != nil {
		return c.publishError(err, len(data))
	}
	c.sent.Add(1)
	return nil
}

// askSelf puts a request to the node itself into its inbox.
func (c *courier) askSelf(w *call, data []byte) error {
	if c.off {
		return ErrUnreachable
	}
	if int64(len(data)) > c.nc.MaxPayload() {
		return fmt.Errorf("%w: %d bytes, the server takes %d", ErrTooLarge, len(data), c.nc.MaxPayload())
	}
	c.sent.Add(1)
	end := tag{kind: kindRequest, nonce: c.nonce, id: w.id, secret: w.secret}.append(nil)
	m := &Message{
		From: c.cfg.pid, To: c.cfg.pid, ID: w.id, Data: bytes.Clone(data),
		asked: &asked{courier: c, answer: string(end[2:])},
	}
	if len(c.inbox.put([]*Message{m})) > 0 {
		return ErrInboxFull
	}
	return nil
}

// await waits for the answer to w, a call of s, at most DefaultRequestTimeout if ctx has no
// deadline.
func (c *courier) await(ctx context.Context, s *calls, w *call) (answer, error) {
	var timeout <-chan time.Time
	if _, ok := ctx.Deadline(); !ok {
		t := time.NewTimer(DefaultRequestTimeout)
		defer t.Stop()
		timeout = t.C
	}
	var err error
	select {
	case a := <-w.answer:
		return a, nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timeout:
		err = context.DeadlineExceeded
	case <-c.done:
		err = ErrClosed
	}
	if s.take(w.id) == nil {
		return <-w.answer, nil // it was answered at the same moment
	}
	return answer{}, err
}

// onReply takes everything that is published to class r at this node. It waits for
// nobody.
func (c *courier) onReply(m *nats.Msg) {
	from, rest, ok := c.subj.parseReply(m.Subject)
	t, tagged := parseTag(rest)
	if !ok || !tagged || t.nonce != c.nonce {
		c.drop(m)
		return
	}
	if isNoResponders(m) {
		c.bounced(from, t)
		return
	}
	if isForeign(m.Header) || !c.answered(from, t, m.Data) {
		c.drop(m)
	}
}

// bounced handles the server's 503 to a message of ours.
func (c *courier) bounced(to PID, t tag) {
	switch t.kind {
	case kindSend:
		c.clerk.add(entry{to: to, id: t.id})
	case kindRequest:
		if w := c.calls.match(t, to); w != nil {
			w.answer <- answer{kind: kindRequest}
		}
	}
	// Nobody took a broadcast or a signal: there is nobody else.
}

// answered handles what another process, or this one, published to an address of
// ours. It reports whether that has a place on the wire; an answer that comes
// when nobody waits any more has one.
func (c *courier) answered(from PID, t tag, data []byte) bool {
	switch t.kind {
	case kindAnswer, kindError, kindFull:
		if w := c.calls.match(t, from); w != nil {
			w.answer <- answer{kind: t.kind, data: data}
		}
		return true
	case kindFlush:
		if from == c.cfg.pid {
			c.clerk.add(entry{flush: &t})
			return true
		}
	}
	return false
}

// answer publishes the answer to the request m.
func (c *courier) answer(m *Message, k kind, data []byte) error {
	if c.closed.Load() {
		return ErrClosed
	}
	if m.From == External {
		return c.answerExternal(m, k, data)
	}
	// m.asked.answer was parsed as the nonce and id of a tag; the PIDs are as checked.
	subject := c.subj.reply(m.From, c.cfg.pid) + string(wireVersion) + string(rune(k)) + m.asked.answer
	if m.From == c.cfg.pid && m.asked.answer[:nonceLen] == c.nonce {
		if int64(len(data)) > c.nc.MaxPayload() {
			return fmt.Errorf("%w: %d bytes, the server takes %d", ErrTooLarge, len(data), c.nc.MaxPayload())
		}
		_, rest, _ := c.subj.parseReply(subject)
		t, _ := parseTag(rest)
		c.answered(m.From, t, bytes.Clone(data))
		return nil
	}
	if err := c.nc.Publish(subject, data); err != nil {
		return c.publishError(err, len(data))
	}
	return nil
}

// answerExternal answers a plain NATS client; an error goes as NATS's services
// send it.
func (c *courier) answerExternal(m *Message, k kind, data []byte) error {
	out := &nats.Msg{Subject: m.asked.answer, Data: data}
	if k != kindAnswer {
		text := string(data)
		if k == kindFull {
			text = ErrInboxFull.Error()
		}
		out.Data = nil
		out.Header = nats.Header{"Nats-Service-Error": {text}, "Nats-Service-Error-Code": {"500"}}
	}
	if err := c.nc.PublishMsg(out); err != nil {
		return c.publishError(err, len(data))
	}
	return nil
}

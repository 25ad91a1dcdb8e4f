package fabric

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
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
	return n.courier.request(ctx, &Message{To: to, Data: data})
}

// RequestMsg is [Node.Request] with what else a [Message] can have: an ID, a Type
// and headers of the caller's. It looks at neither m.Mode nor m.Ack. The answer has
// the Type that [Message.ReplyMsg] gave it.
func (n *Node) RequestMsg(ctx context.Context, m *Message) (*Message, error) {
	return n.courier.request(ctx, m)
}

// A call is somebody who waits for an answer in class r.
type call struct {
	id     uint64
	secret string
	from   PID // who may answer; nobody: anyone who was asked
	// service is whose provider was asked, if from is nobody.
	service  string
	gathered string      // the secret of the frame that it was sent in, if it was
	answer   chan answer // capacity 1: whoever takes the call from calls sends one
}

// An answer is what ended a call.
type answer struct {
	kind kind
	from PID
	typ  string
	data []byte
	err  error // instead of the others; errBounced is the server's 503
}

var errBounced = errors.New("no responders")

// calls are the outstanding ones by their secret.
type calls struct {
	mu sync.Mutex // guards m
	m  map[string]*call
}

func (s *calls) init() { s.m = make(map[string]*call) }

func newCall(id uint64, from PID) *call {
	return &call{id: id, from: from, secret: random(secretLen), answer: make(chan answer, 1)}
}

func (s *calls) open(id uint64, from PID) *call { return s.add(newCall(id, from)) }

// openAny is open for a request to whoever serves service.
func (s *calls) openAny(id uint64, service string) *call {
	w := newCall(id, nobody)
	w.service = service
	return s.add(w)
}

func (s *calls) add(w *call) *call {
	s.mu.Lock()
	s.m[w.secret] = w
	s.mu.Unlock()
	return w
}

// take removes w: the one to whom it returns true answers it.
func (s *calls) take(w *call) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.m[w.secret]
	delete(s.m, w.secret)
	return ok
}

// match removes and returns the call that an answer from the network is for, or nil.
// Nobody gets a call but with its secret, and from the process that was asked.
func (s *calls) match(t tag, from PID) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.m[t.secret]
	if w == nil || w.id != t.id || w.from != from && (w.from != nobody || from == External) {
		return nil
	}
	delete(s.m, t.secret)
	return w
}

// gather notes that the call of a secret is sent in the frame of the call of another.
func (s *calls) gather(secret, first string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range [...]string{secret, first} {
		if w := s.m[secret]; w != nil { // its caller may have given up
			w.gathered = first
		}
	}
}

// fail ends all calls to a process, or those of a service to nobody, and reports
// whether there were any.
func (s *calls) fail(to PID, service string, err error) bool {
	return s.failAll(err, func(w *call) bool { return w.from == to && w.service == service })
}

// failGathered ends the calls to a process that were sent in the frame of a secret.
func (s *calls) failGathered(secret string, to PID, err error) bool {
	return s.failAll(err, func(w *call) bool { return w.gathered == secret && w.from == to })
}

func (s *calls) failAll(err error, which func(*call) bool) (any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for secret, w := range s.m {
		if which(w) {
			delete(s.m, secret)
			w.answer <- answer{err: err}
			any = true
		}
	}
	return any
}

func (c *courier) request(ctx context.Context, m *Message) (*Message, error) {
	d, err := c.readyFor(ctx, m)
	if err == nil && d.many() {
		err = &NameError{Field: "pid", Name: string(d.pid), Reason: "a request goes to one process; Gather asks many"}
	}
	if err != nil {
		return nil, fmt.Errorf("request to %s: %w", m.target(), err)
	}
	a, id, err := c.exchange(ctx, d, m)
	if err != nil {
		return nil, fmt.Errorf("request to %s: %w", m.target(), err)
	}
	return &Message{From: a.from, To: c.cfg.pid, ID: id, Type: a.typ, Data: a.data}, nil
}

// exchange sends the request m to d and returns its answer.
func (c *courier) exchange(ctx context.Context, d *dest, m *Message) (a answer, id uint64, err error) {
	began := time.Now()
	if err := cmp.Or(checkHeader(m.Header), checkType(m.Type)); err != nil {
		return a, 0, err
	}
	if id = m.ID; id == 0 {
		id = c.ids.Add(1)
	}
	var w *call
	if d.service == "" {
		w = c.calls.open(id, d.pid)
	} else {
		w = c.calls.openAny(id, d.service)
	}
	o := outgoing{kind: kindRequest, id: id, secret: w.secret, typ: m.Type, header: m.Header, data: m.Data}
	if err := c.ask(ctx, d, &o); err != nil {
		c.calls.take(w)
		return a, 0, err
	}
	a, err = c.await(ctx, &c.calls, w)
	switch {
	case err == ErrClosed:
		return a, 0, err
	case err != nil:
		return a, 0, fmt.Errorf("no answer to message %d within %v: %w", id, time.Since(began).Round(time.Millisecond), err)
	case a.kind == kindAnswer:
		return a, id, nil
	}
	if d.service != "" && a.err == errBounced {
		return a, 0, ErrNoReceiver
	}
	return a, 0, c.refusal(ctx, cmp.Or(a.from, d.pid), a)
}

// refusal is the error of an answer that is none of those awaited.
func (c *courier) refusal(ctx context.Context, from PID, a answer) error {
	switch {
	case a.err == errBounced:
		return c.verdict(ctx, from)
	case a.err != nil:
		return a.err
	case a.kind == kindError && a.typ == codeTooLarge:
		return fmt.Errorf("%w for %s", ErrTooLarge, from)
	case a.kind == kindError:
		return &RemoteError{PID: from, Code: a.typ, Message: string(a.data)}
	case a.kind == kindFull:
		return ErrInboxFull
	}
	return fmt.Errorf("%w: %s answered as to a message of another kind", ErrUnknownOutcome, from)
}

// ask sends o, something to be answered.
func (c *courier) ask(ctx context.Context, d *dest, o *outgoing) error {
	if len(o.data) > c.chunk() && d.pid != c.cfg.pid && d.one() {
		return c.postLinked(ctx, d, o)
	}
	// A borrowed connection's reconnect buffer would take it and answer nothing.
	if !c.nc.IsConnected() {
		if c.nc.IsClosed() {
			return natsError(nats.ErrConnectionClosed)
		}
		return ErrDisconnected
	}
	return c.post(d, o)
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
	if !s.take(w) {
		return <-w.answer, nil // it was answered at the same moment
	}
	return answer{}, err
}

// onReply takes everything that is published to class r at this node. It waits for
// nobody.
func (c *courier) onReply(m *nats.Msg) {
	from, rest, ok := c.subj.parseReply(m.Subject)
	if ok && rest == presence {
		return // the server has seen that we are here
	}
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
	switch {
	case t.kind == kindSend:
		c.clerk.add(entry{to: to, id: t.id})
	case t.kind == kindMulti && to != nobody:
		eachID(t.id, t.steps, func(id uint64) { c.clerk.add(entry{to: to, id: id}) })
	case t.kind == kindLinked, t.kind == kindLink, t.kind == kindPart, t.kind == kindProbe:
		if l := c.links.named(t.secret, to); l != nil {
			l.bounced(t.kind)
		}
	case t.kind == kindGathered && to != nobody:
		c.calls.failGathered(t.secret, to, errBounced)
	case t.kind.awaits():
		if w := c.calls.match(t, to); w != nil {
			w.answer <- answer{err: errBounced}
		} else if to == nobody {
			c.queries.end(t, errBounced)
		}
	case t.kind == kindMail:
		c.mail.answered(to, t, answer{err: errBounced})
	}
	// Nobody took a broadcast, a message to a topic or a signal: there is nobody else.
}

// answered handles what another process, or this one, published to an address of
// ours. It reports whether that has a place on the wire; an answer that comes
// when nobody waits any more has one.
func (c *courier) answered(from PID, t tag, data []byte) bool {
	switch t.kind {
	case kindAnswer, kindAck, kindError, kindFull:
		if from == nobody {
			return false
		}
		a := answer{kind: t.kind, from: from, typ: t.typ, data: data}
		if w := c.calls.match(t, from); w != nil {
			w.answer <- a
		} else {
			c.queries.heard(t, a)
		}
		return true
	case kindGathered:
		return from != nobody && c.answeredAll(from, t, data)
	case kindState, kindNoLink:
		return c.linkWord(from, t, data)
	case kindMail:
		c.mail.answered(from, t, answer{kind: t.kind, data: data})
		return true
	case kindNack:
		return c.nacked(from, t, data)
	case kindFlush:
		if from == c.cfg.pid {
			c.clerk.add(entry{flush: &t})
			return true
		}
	}
	return false
}

// answer publishes what the sender of m awaits.
func (c *courier) answer(ctx context.Context, m *Message, k kind, typ string, data []byte) error {
	if c.closed.Load() {
		return ErrClosed
	}
	if m.From == External {
		return c.answerExternal(m, k, data)
	}
	// The parts were parsed as those of a tag; the PIDs are as checked.
	a := m.asked()
	o := &outgoing{kind: k, nonce: a.nonce, id: a.id, secret: a.secret, typ: typ, data: data}
	if m.From == c.cfg.pid && o.nonce == c.nonce {
		c.answered(m.From, tag{kind: k, nonce: o.nonce, typ: typ, id: o.id, secret: o.secret}, bytes.Clone(data))
		return nil
	}
	if len(data) > c.chunk() {
		d, err := c.dest(m.From)
		if err != nil {
			return err
		}
		return c.postLinked(ctx, d, o)
	}
	if !c.nc.IsConnected() {
		return ErrDisconnected
	}
	return c.batcher.post(c.answersTo(m.From), o)
}

// answeredAll is answered for the answers in a frame.
func (c *courier) answeredAll(from PID, t tag, frame []byte) bool {
	r := frameReader{b: frame}
	for it := (item{}); r.next(&it); {
		if !t.kind.holds(&it, classReply) {
			return false
		}
		c.answered(from, tag{kind: it.kind, nonce: t.nonce, typ: it.typ, id: it.id, secret: it.secret}, it.data)
	}
	return !r.bad
}

// answerExternal answers a plain NATS client; an error goes as NATS's services
// send it.
func (c *courier) answerExternal(m *Message, k kind, data []byte) error {
	out := &nats.Msg{Subject: m.asked().inbox, Data: data}
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

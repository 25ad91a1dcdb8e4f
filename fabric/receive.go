package fabric

import (
	"context"
	"iter"
	"runtime"
	"strings"
	"unsafe"

	"github.com/nats-io/nats.go"
)

// Receive returns the next message to this node, waiting for one until ctx ends,
// whose cause it returns. Messages of one sender come in the order in which they
// were sent. What the inbox held when the node closed can still be received; then
// it returns [ErrClosed]. Several goroutines may receive, by Receive, Messages and
// Handle: each message goes to one of them.
func (n *Node) Receive(ctx context.Context) (*Message, error) {
	return n.courier.inbox.take(ctx, n.courier.done, 0)
}

// Messages iterates over what [Node.Receive] returns, up to and including its
// first error.
func (n *Node) Messages(ctx context.Context) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		for {
			m, err := n.Receive(ctx)
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// dispatchBatch is how many messages go to the inbox at once, if so many wait.
const dispatchBatch = 256

// dispatch takes everything from ch into the inbox until the courier closes.
func (c *courier) dispatch(ch <-chan *nats.Msg) {
	d := decoder{c: c}
	batch := make([]*Message, 0, dispatchBatch)
	full := false
	for open := true; open; {
		var m *nats.Msg
		if len(ch) == 0 {
			runtime.Gosched() // let more come in before this goroutine sleeps
		}
		select {
		case m = <-ch:
		case <-c.done: // nobody adds to ch any more; take the rest
			open = false
		}
		for batch = batch[:0]; ; {
			switch m {
			case nil:
			case c.end:
				c.deliver(batch, &full)
				batch = batch[:0]
				close(c.through) // all that came before is in the inbox
			default:
				batch = d.decode(batch, m)
			}
			if len(batch) >= dispatchBatch {
				c.deliver(batch, &full)
				batch = batch[:0]
			}
			select {
			case m = <-ch:
				continue
			default:
			}
			break
		}
		c.deliver(batch, &full)
		if c.cfg.gate != nil {
			c.cfg.gate.drained()
		}
	}
	if c.cfg.gate != nil {
		c.cfg.gate.remove()
	}
}

// deliver puts a batch into the inbox, and has the senders told what they await.
// full is whether the last batch found the inbox full.
func (c *courier) deliver(batch []*Message, full *bool) {
	refused := c.inbox.put(batch)
	if now := len(refused) > 0; now != *full && len(batch) > 0 {
		*full = now
		if now {
			c.log.Warn("inbox full, messages are rejected", "pid", c.cfg.pid)
		}
	}
	c.arrived(batch, refused)
	clear(batch)
}

// A decoder turns what arrives in the classes u, b, g and q into messages. It remembers the
// senders: their subjects and the beginnings of their reply subjects are parsed
// and checked once.
type decoder struct {
	c       *courier
	last    *sender
	senders map[string]*sender // by subject
}

// A sender is what the messages on one subject have in common.
type sender struct {
	subject  string
	class    string
	from, to PID
	topic    string
	own      bool // to many, by this node
	// plain begins the reply subjects of messages that are no requests, up to the
	// id. Empty until the first was parsed.
	plain  string
	typ    string  // the type that plain has
	source *source // of messages that begin with plain
	framed *source // of the last frame
}

// at is whom the reply subjects of s name as the receiver.
func (s *sender) at() PID {
	if s.class == classPeer {
		return s.to
	}
	return nobody
}

// sourceOf returns the source for messages of a courier: last, if it is that.
func sourceOf(nonce string, last *source) *source {
	if last != nil && last.nonce == nonce {
		return last
	}
	return &source{nonce: nonce}
}

// maxSenders bounds the decoder's memory; when it is reached, it starts afresh.
const maxSenders = 16_384

// decode appends m to batch, or drops it.
func (d *decoder) decode(batch []*Message, m *nats.Msg) []*Message {
	s := d.last
	if s == nil || s.subject != m.Subject {
		if s = d.senderOf(m); s == nil {
			d.c.drop(m)
			return batch
		}
		d.last = s
	}
	if isForeign(m.Header) {
		d.c.drop(m)
		return batch
	}
	if s.plain == "" || !strings.HasPrefix(m.Reply, s.plain) {
		if t, ok := d.framed(s, m.Reply); ok {
			return d.unpack(batch, m, s, t)
		}
	}
	msg := &Message{From: s.from, To: s.to, Topic: s.topic, Header: m.Header, Data: m.Data}
	ok := false
	if n := len(s.plain); n > 0 && len(m.Reply) > n && m.Reply[:n] == s.plain {
		msg.ID, ok = parseID(m.Reply[n:])
		msg.Type, msg.Mode, msg.source = s.typ, Fast, s.source
	} else {
		ok = d.address(msg, s, m.Reply)
	}
	switch {
	case !ok:
		d.c.drop(m)
	case s.own: // our own broadcast, or to a topic that we have joined
	default:
		batch = append(batch, msg)
	}
	return batch
}

// framed returns the tag of a message that is not one message of a user's by itself.
func (d *decoder) framed(s *sender, reply string) (tag, bool) {
	if s.from == External {
		return tag{}, false
	}
	rest, ok := d.c.subj.cutReply(reply, s.from, s.at())
	if !ok || rest == "" || !kind(rest[0]).fits(s.class) {
		return tag{}, false
	}
	switch kind(rest[0]) {
	case kindMulti, kindGathered, kindLinked, kindLink, kindPart, kindProbe:
		return parseTag(rest)
	}
	return tag{}, false
}

// unpack appends the messages of m, a frame or one of a link.
func (d *decoder) unpack(batch []*Message, m *nats.Msg, s *sender, t tag) []*Message {
	if t.kind != kindMulti && t.kind != kindGathered {
		return d.linked(batch, m, s, t)
	}
	if s.own {
		return batch
	}
	s.framed = sourceOf(t.nonce, s.framed)
	var slab []Message
	var asks []asked
	r := frameReader{b: m.Data}
	for it := (item{}); r.next(&it); {
		if !t.kind.holds(&it, s.class) {
			r.bad = true
			break
		}
		if len(slab) == 0 {
			slab = make([]Message, min(slabLen, 1+r.left()/max(len(it.data)+4, 8)))
		}
		msg := &slab[0]
		slab = slab[1:]
		it.fill(msg)
		msg.From, msg.To, msg.Mode, msg.source = s.from, s.to, modeOf(it.kind), s.framed
		if s.topic != "" {
			msg.Topic = s.topic
		}
		if it.kind.awaits() {
			if len(asks) == 0 {
				asks = make([]asked, len(slab)+1)
			}
			a := &asks[0]
			asks = asks[1:]
			a.courier, a.kind, a.id, a.secret = d.c, it.kind, it.id, it.secret
			msg.ask(t.nonce, a)
		}
		batch = append(batch, msg)
	}
	if r.bad {
		d.c.drop(m)
	}
	return batch
}

// fill sets what a frame says of m, which is zero. It writes no pointer for nothing, as the
// frameReader does not.
func (it *item) fill(m *Message) {
	m.ID, m.Data = it.id, it.data
	if it.typ != "" {
		m.Type = it.typ
	}
	if it.header != nil {
		m.Header = it.header
	}
}

// slabLen is how many messages of a frame share an allocation, and are kept while one of them
// is: the garbage collector goes faster through what has at most 512 bytes.
const slabLen = int(512 / unsafe.Sizeof(Message{}))

// address fills in what the reply subject says.
func (d *decoder) address(msg *Message, s *sender, reply string) bool {
	if s.from == External {
		if isInboxAddress(reply) {
			msg.ask("", &asked{courier: d.c, kind: kindRequest, inbox: reply})
		}
		return true
	}
	rest, ok := d.c.subj.cutReply(reply, s.from, s.at())
	if !ok {
		return false
	}
	t, ok := parseTag(rest)
	if !ok || !t.kind.fits(s.class) {
		return false
	}
	msg.ID, msg.Type, msg.Mode = t.id, t.typ, modeOf(t.kind)
	head := tagLen + len(t.typ) // of rest: the tag
	if t.kind.awaits() {
		msg.ask(t.nonce, &asked{courier: d.c, kind: t.kind, id: t.id, secret: t.secret})
	} else {
		s.source = sourceOf(t.nonce, s.source)
		msg.source = s.source
		s.plain, s.typ = reply[:len(reply)-len(rest)+head+1], t.typ
	}
	return true
}

// senderOf returns who published to the subject of m, or nil if it has no place
// in the fabric.
func (d *decoder) senderOf(m *nats.Msg) *sender {
	if s := d.senders[m.Subject]; s != nil {
		return s
	}
	s := d.c.parse(m.Subject)
	if s == nil {
		return nil
	}
	if s.from == External && d.c.cfg.inbox.MembersOnly {
		return nil
	}
	if d.senders == nil || len(d.senders) >= maxSenders {
		d.senders = make(map[string]*sender)
	}
	d.senders[m.Subject] = s
	return s
}

// parse says what messages on a subject are; nil if the subject has no place in the
// fabric.
func (c *courier) parse(subject string) *sender {
	s := &sender{subject: subject, class: classPeer, to: c.cfg.pid}
	var ok bool
	if s.from, ok = c.subj.parsePeer(subject); ok {
		return s
	}
	if _, s.from, ok = c.subj.parseService(subject); ok {
		s.class = classQueue
		return s
	}
	s.to = Everyone
	if s.from, ok = c.subj.parseCast(subject); ok {
		s.class = classCast
	} else if s.topic, s.from, ok = c.subj.parseTopic(subject); ok {
		s.class = classTopic
	}
	if !ok || s.from == External { // who is outside speaks to one at a time
		return nil
	}
	s.own = s.from == c.cfg.pid
	return s
}

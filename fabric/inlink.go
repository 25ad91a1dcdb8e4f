package fabric

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/window"
)

// An inLink is the receiver's end of a link. What it accepts goes to the inbox, where
// it waits, within the window, until the program takes it: so a program that is slow
// holds back those who send to it on links, and refuses them nothing.
type inLink struct {
	c        *courier
	name     string
	from     PID
	origin   source // the sender's courier
	waits    source // the same, of messages of which in is told when the program takes them
	isStream bool
	resume   atomic.Bool // what was refused for want of memory may come

	mu      sync.Mutex       // guards the fields below
	win     *window.Receiver // nil if the link is none, or no longer
	stream  *InStream        // nil if the link is none's, or over
	life    uint64           // the sender's incarnation, once it was in the view
	partial *partial         // the message that comes in parts
	slab    []Message        // to be used by what follows in a frame
	due     bool             // the sender is to be told
	used    time.Time

	word word // not guarded by mu
}

// A word is what the sender of a link is about to be told. Its mutex is apart: whoever takes in
// a part of a message has inLink.mu for long, and the sender may wait for the word of the last.
type word struct {
	mu      sync.Mutex // guards the fields below
	pending bool
	isLink  bool
	state   window.State // if it is one
}

func newInLink(c *courier, name string, from PID, nonce string) *inLink {
	in := &inLink{c: c, name: name, from: from, origin: source{nonce: nonce}, used: time.Now()}
	in.waits = source{nonce: nonce, link: in}
	return in
}

// Limits of what one process may have others keep for it.
const (
	// maxLinksPerPeer bounds the streams of one PID to this process, and its links for
	// messages: a process has one, its lives before may have left others.
	maxLinksPerPeer = 64
	// linkIdle is how long a link is kept that nothing comes on.
	linkIdle    = 10 * time.Minute
	expireEvery = 5 * time.Second
)

// admit reports whether a PID may have another link, for messages or a stream. If it has
// all it may, the one for messages that was not used for the longest time makes room, among
// those of which nothing waits. That a link begins ends no other before that: its probe may
// be a late one, of a life that is over. It needs s.mu.
func (s *links) admit(from PID, isStream bool) bool {
	var n int
	var oldest *inLink
	var used time.Time
	for _, in := range s.in {
		if in.from != from || in.isStream != isStream {
			continue
		}
		n++
		in.mu.Lock()
		if !in.isStream && !in.holds() && (oldest == nil || in.used.Before(used)) {
			oldest, used = in, in.used
		}
		in.mu.Unlock()
	}
	if n < maxLinksPerPeer || oldest == nil {
		return n < maxLinksPerPeer
	}
	oldest.mu.Lock()
	defer oldest.mu.Unlock()
	s.retire(oldest, nil)
	return true
}

// holds reports whether the program has not taken all that came. It needs in.mu.
func (in *inLink) holds() bool { return in.partial != nil || in.win.Waiting() > 0 }

// grant is what is granted to a link that begins: an equal part of what the inbox may
// hold. Of the links of one PID for messages, those that something waits of count, and one
// of the others. It needs links.mu.
func (c *courier) grant(begins *inLink) window.Grant {
	n := 1
	counted := make(map[PID]bool)
	if !begins.isStream {
		counted[begins.from] = true
	}
	for _, in := range c.links.in {
		in.mu.Lock()
		switch {
		case in.isStream || in.holds():
			n++
		case !counted[in.from]:
			n++
			counted[in.from] = true
		}
		in.mu.Unlock()
	}
	return window.Grant{
		Seq:   min(max(uint64(c.inbox.maxMsgs/n), firstGrant.Seq), 4096),
		Bytes: min(max(uint64(c.inbox.maxBytes)/uint64(n), firstGrant.Bytes), maxWindow),
	}
}

// maxWindow bounds the bytes under way on one link.
const maxWindow = 4 << 20

// linked takes in a message of class u that belongs to a link.
func (d *decoder) linked(batch []*Message, m *nats.Msg, s *sender, t tag) []*Message {
	c := d.c
	if t.kind == kindProbe {
		if in := c.inLink(s, t); in != nil {
			in.probed(t.seq)
		}
		return batch
	}
	c.links.mu.Lock()
	in := c.links.inNamed(t.secret)
	c.links.mu.Unlock()
	if in == nil || in.from != s.from || in.origin.nonce != t.nonce || in.isStream {
		c.stray.Add(1) // from a link that is over, or not begun: the sender will ask
		return batch
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.used = time.Now()
	if in.win == nil {
		c.stray.Add(1)
		in.tell()
		return batch
	}
	switch t.kind {
	case kindLinked:
		it := item{kind: kindSend, typ: t.typ, id: t.id, header: m.Header, data: m.Data}
		batch, _ = in.take(batch, t.seq, &it)
	case kindPart:
		batch = in.bare(batch, t, m.Data)
	default:
		batch = in.frame(batch, t.id, m)
	}
	if in.due {
		in.due = false
		in.tell()
	}
	return batch
}

// frame takes in the items of m, of which the first has the number seq. It needs in.mu.
func (in *inLink) frame(batch []*Message, seq uint64, m *nats.Msg) []*Message {
	r := frameReader{b: m.Data}
	for it, on := (item{}), true; on && in.win != nil && r.next(&it); seq++ {
		if len(in.slab) == 0 && it.kind == kindSend && !it.more {
			in.slab = make([]Message, min(slabLen, 1+r.left()/max(len(it.data)+4, 8)))
		}
		batch, on = in.take(batch, seq, &it)
	}
	in.slab = nil
	if r.bad {
		in.c.drop(m)
	}
	return batch
}

// bare takes in a part of a message that has no frame, of which t says the rest. It needs in.mu.
func (in *inLink) bare(batch []*Message, t tag, data []byte) []*Message {
	sum := t.seq - 1
	it := item{kind: kindPart, more: true, hasCRC: true, crc: uint32(sum), data: data}
	if uint64(it.crc) != sum {
		in.c.invalid.Add(1)
		return batch
	}
	batch, _ = in.take(batch, t.id, &it)
	return batch
}

// take appends the message that it is, if it is one and its turn. on is whether those
// that follow may be looked at. It needs in.mu.
func (in *inLink) take(batch []*Message, seq uint64, it *item) (_ []*Message, on bool) {
	size := it.size()
	verdict := in.win.Look(seq, size)
	if verdict != window.Accept || !it.more {
		in.due = true // or the next part is under way
	}
	switch verdict {
	case window.Repeated:
		in.c.repeated.Add(1)
		return batch, true
	case window.Early:
		return batch, false
	case window.Beyond:
		in.c.invalid.Add(1)
		return batch, false
	}
	if in.isStream {
		return batch, in.takeStream(it)
	}
	if it.more || it.kind == kindPart {
		return in.takePart(batch, it)
	}
	in.win.Accepted(size)
	switch m := in.message(it); {
	case it.kind == kindSend, it.kind.awaits():
		if in.c.inbox.onFull != Block { // nobody is held back
			in.win.Consume(1, size)
			return append(batch, m), true
		}
		in.wait(m)
		return append(batch, m), true
	case it.kind.answers():
		in.c.answered(in.from, tag{kind: it.kind, typ: it.typ, id: it.id, secret: it.secret}, it.data)
	default:
		in.c.invalid.Add(1)
	}
	in.win.Consume(1, size)
	return batch, true
}

// takePart is take for a part of a message, which counts for the window until it is
// accepted only: its memory is reserved apart.
func (in *inLink) takePart(batch []*Message, it *item) (_ []*Message, on bool) {
	p, err := in.part(it)
	switch err {
	case nil:
	case errNoMemory:
		in.win.Refuse()
		in.due = true
		return batch, false
	default:
		in.due = true
		in.c.invalid.Add(1)
		in.c.log.Warn("part of a message dropped", "pid", in.c.cfg.pid, "from", in.from, "err", err)
		if err == errChecksum {
			return batch, false // as if it had not come: it comes again
		}
	}
	in.win.Accepted(it.size())
	if in.win.Consume(1, it.size()) {
		in.due = true
	}
	if p == nil {
		return batch, true
	}
	m := in.message(&p.item)
	if p.item.kind.answers() {
		in.c.memory.free(p.total)
		in.c.answered(in.from, tag{kind: p.item.kind, typ: m.Type, id: m.ID, secret: p.item.secret}, m.Data)
		return batch, true
	}
	m.large = true
	in.wait(m)
	return append(batch, m), true
}

// message makes a message of an item.
func (in *inLink) message(it *item) *Message {
	var m *Message
	if len(in.slab) > 0 {
		m, in.slab = &in.slab[0], in.slab[1:]
	} else {
		m = new(Message)
	}
	it.fill(m)
	m.From, m.To, m.Mode, m.source = in.from, in.c.cfg.pid, Reliable, &in.origin
	if it.kind.awaits() {
		m.Mode = modeOf(it.kind)
		m.ask(in.origin.nonce, &asked{courier: in.c, kind: it.kind, id: it.id, secret: it.secret})
	}
	return m
}

// wait has in told when the program takes m.
func (in *inLink) wait(m *Message) {
	if a := m.asked(); a != nil {
		a.link = in
	} else {
		m.source = &in.waits
	}
}

// answers reports whether k ends a call.
func (k kind) answers() bool {
	return k == kindAnswer || k == kindError || k == kindAck || k == kindFull
}

// inLink returns the link that a probe speaks of. It makes one that begins; without
// one the sender is told that there is none.
func (c *courier) inLink(s *sender, t tag) *inLink {
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	in := c.links.inNamed(t.secret)
	if in != nil {
		if in.from != s.from || in.origin.nonce != t.nonce || in.isStream {
			return nil
		}
		return in
	}
	in = newInLink(c, t.secret, s.from, t.nonce)
	if t.id != 1 || !c.links.admit(s.from, false) {
		c.links.tell(in) // with no window: there is no such link
		return nil
	}
	in.win, in.life = window.NewReceiver(c.grant(in)), c.cfg.lifeOf(s.from)
	c.links.in[in.name] = in
	return in
}

func (in *inLink) probed(number uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.used = time.Now()
	if in.win != nil {
		in.win.Probed(number)
	}
	in.tell()
}

// consumed notes that the program has taken m, which was accepted on the link.
func (in *inLink) consumed(m *Message) {
	if m.large {
		in.c.memory.free(int64(len(m.Data)))
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.win != nil && in.win.Consume(1, uint64(m.size())) {
		in.tell()
	}
}

// tell has the sender told the link's state, soon. It needs in.mu.
func (in *inLink) tell() {
	if in.note() {
		in.c.links.tell(in)
	}
}

// note puts the link's state into the word, and reports whether the last had been told. It
// needs in.mu.
func (in *inLink) note() (first bool) {
	w := &in.word
	w.mu.Lock()
	defer w.mu.Unlock()
	again := w.state.Again
	if w.isLink = in.win != nil; w.isLink {
		w.state = in.win.State()
		w.state.Again = w.state.Again || again && !w.state.Hold
	}
	first, w.pending = !w.pending, true
	return first
}

// say returns the word, as it is published. That what was refused may come again is said once.
func (w *word) say() (k kind, data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = false
	if !w.isLink {
		return kindNoLink, nil
	}
	data = appendState(nil, w.state)
	w.state.Again = false
	return kindState, data
}

func (s *links) tell(in *inLink) {
	s.tellMu.Lock()
	s.tells = append(s.tells, in)
	s.tellMu.Unlock()
	select {
	case s.told <- struct{}{}:
	default:
	}
}

// speak tells the senders the states of their links. It is a goroutine of its own
// because publishing waits when the server does not read; what happens meanwhile goes
// into one state.
func (s *links) speak() {
	for {
		select {
		case <-s.told:
		case <-s.c.done:
			return
		}
		s.tellMu.Lock()
		tells := s.tells
		s.tells = nil
		s.tellMu.Unlock()
		for _, in := range tells {
			in.speak()
		}
	}
}

func (in *inLink) speak() {
	if in.resume.Swap(false) {
		in.mu.Lock()
		if in.win != nil {
			in.win.Resume()
		}
		in.note()
		in.mu.Unlock()
	}
	k, data := in.word.say()
	t := tag{kind: k, nonce: in.origin.nonce, id: 1, secret: in.name}
	subject := string(t.append([]byte(in.c.subj.reply(in.from, in.c.cfg.pid))))
	if err := in.c.nc.Publish(subject, data); err != nil {
		in.c.log.Debug("link: state not told", "pid", in.c.cfg.pid, "to", in.from, "err", err)
	}
}

// expire ends links whose message in parts does not continue, streams whose writer is
// silent, and links that nothing comes on.
func (s *links) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := now.Sub(s.looked)
	if since < expireEvery {
		return
	}
	connected := s.c.nc.IsConnected()
	newest := make(map[PID]time.Time) // when the last used link for messages was
	for _, in := range s.in {
		in.mu.Lock()
		switch {
		case !connected:
			in.used = now // nobody can be heard
		case since > 2*expireEvery && !s.looked.IsZero():
			in.used = in.used.Add(min(since-expireEvery, now.Sub(in.used))) // this node did not run
		}
		if !in.isStream && in.used.After(newest[in.from]) {
			newest[in.from] = in.used
		}
		in.mu.Unlock()
	}
	for _, in := range s.in {
		in.mu.Lock()
		in.expire(now, in.used.Before(newest[in.from]))
		in.mu.Unlock()
	}
	s.past.expire(now, connected)
	s.looked = now
}

// expire ends the link, if it is time. replaced says that another for messages of the same
// PID was used later. It needs links.mu and in.mu.
func (in *inLink) expire(now time.Time, replaced bool) {
	idle, life := now.Sub(in.used), in.c.cfg.lifeOf(in.from)
	if in.life == 0 {
		in.life = life
	}
	switch {
	case in.isStream && idle > stallLimit: // its writer is not there, or it would have asked
	case in.partial != nil && (idle > stallLimit || idle > expireEvery && life != in.life):
		in.c.log.Warn("message in parts does not continue", "pid", in.c.cfg.pid, "from", in.from)
	case in.isStream || idle <= linkIdle:
		return
	case in.c.cfg.known(in.from) && life == in.life && !replaced: // it may go on
		return
	}
	in.c.links.retire(in, ErrStreamStalled)
}

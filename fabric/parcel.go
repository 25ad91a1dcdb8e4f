package fabric

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A parcel is one publish.
type parcel struct {
	d      *dest
	o      outgoing // of its only message, without the data, or first message
	buf    []byte   // a frame, or if the message cannot be in one a copy of its data
	data   []byte   // of the only message
	n      int      // messages
	ids    series
	round  uint64
	casts  uint64
	link   *outLink
	last   uint64       // number on link of the last message; guarded by the link
	users  atomic.Int32 // of a link's: who may still read buf, the link and places in the queue
	loan   *loan        // whose memory data is, or was; nil if it always was ours
	marker *call        // of a flush
	until  time.Time    // when it has waited long enough for the connection; zero if it never did
}

var parcels = sync.Pool{New: func() any { return new(parcel) }}

// newParcel makes a parcel of one message, with a copy of its data.
func newParcel(d *dest, o *outgoing) *parcel {
	p := parcels.Get().(*parcel)
	*p = parcel{d: d, o: *o, buf: p.buf[:0], n: 1}
	p.o.data = nil
	if o.framed(d) {
		if !o.kind.secret() {
			p.ids.add(o.id)
		}
		p.buf = appendItem(p.buf, o.item())
		p.data = p.buf[len(p.buf)-len(o.data):]
		return p
	}
	p.buf = append(p.buf, o.data...)
	p.data, p.o.header = p.buf, cloneHeader(o.header)
	return p
}

// newLinked makes a parcel of one message of a link.
func newLinked(l *outLink, seq uint64, it *item, loan *loan) *parcel {
	p := &parcel{d: l.d, n: 1, link: l, last: seq}
	p.users.Store(1)
	if loan.take(p, it) {
		p.o = outgoing{kind: kindPart, id: seq, seq: 1 + uint64(it.crc), secret: l.name}
		return p
	}
	p.buf = newFrame(it)
	p.o = outgoing{kind: kindLink, id: it.id, typ: it.typ, seq: seq, secret: l.name}
	if it.kind == kindSend && len(it.header) == 0 && !it.more && !it.hasCRC {
		p.data = p.buf[len(p.buf)-len(it.data):]
		p.o.kind = kindLinked
	}
	return p
}

// goesWith reports whether o, to the same destination, is of the sort of what is in p.
func (p *parcel) goesWith(o *outgoing) bool {
	return p.o.ttl == o.ttl && p.o.kind.awaits() == o.kind.awaits() && p.o.nonce == o.nonce
}

// add adds it to the frame, for which there is room for as much as it has usually.
func (p *parcel) add(it *item, usual int) {
	if room := cap(p.buf) - len(p.buf); room < it.most() {
		p.buf = slices.Grow(p.buf, max(it.most(), usual-len(p.buf)))
	}
	p.buf = appendItem(p.buf, it)
	p.n++
}

// weight is what p counts for in the queue, in bytes.
func (p *parcel) weight() int {
	if p.loan != nil {
		return p.loan.part
	}
	return len(p.buf)
}

// publishParcel publishes p, and reports what fails. It is not done with it if that
// waits for the connection now. If p comes behind what waits, it is as if the connection
// were away.
func (c *courier) publishParcel(p *parcel, behind bool) (done bool) {
	if p.link != nil {
		c.publishLinked(p)
		return true
	}
	o := p.o
	o.data = p.data
	switch {
	case p.n == 1:
	case o.kind.secret():
		o.kind, o.typ, o.data = kindGathered, "", p.buf
	default:
		o.kind, o.typ, o.data, o.steps = kindMulti, "", p.buf, p.steps()
	}
	err := ErrDisconnected
	if !behind || !p.o.ordered() {
		err = c.emit(p.d, &o)
	}
	if errors.Is(err, ErrDisconnected) && c.batcher.shelveFailed(p) {
		return false
	}
	if err != nil {
		p.report(c, err)
	}
	return true
}

// publishLinked publishes p, which is a link's. What is lost is sent again when the link finds
// out.
func (c *courier) publishLinked(p *parcel) {
	if p.link.over.Load() {
		return // it was reported
	}
	o := p.o
	switch {
	case p.loan != nil:
		p.loan.mu.Lock()
		defer p.loan.mu.Unlock()
		if o.data = p.data; o.data == nil {
			return // acknowledged meanwhile, or the link failed
		}
	case p.n > 1 || o.kind == kindLink:
		o.kind, o.data, o.typ, o.id = kindLink, p.buf, "", o.seq
	default:
		o.data = p.data
	}
	if err := c.emit(p.d, &o); err != nil {
		c.log.Debug("link: not published", "pid", c.cfg.pid, "to", p.d.pid, "err", err)
	}
}

func (p *parcel) steps() string {
	var steps [maxSteps + 32]byte
	return string(p.ids.appendSteps(steps[:0]))
}

// report has those told who care that p was not published.
func (p *parcel) report(c *courier, err error) {
	switch {
	case p.marker != nil:
		if c.flushes.take(p.marker) {
			p.marker.answer <- answer{err: err}
		}
	case p.o.kind.answers():
		c.log.Warn("answer not sent", "pid", c.cfg.pid, "to", p.d.pid, "id", p.o.id, "err", err)
	case p.n > 1 && p.o.kind.awaits():
		c.calls.failGathered(p.o.secret, p.d.pid, err)
	case p.o.kind.awaits():
		if w := c.calls.match(tag{id: p.o.id, secret: p.o.secret}, p.d.pid); w != nil {
			w.answer <- answer{err: err}
		} else {
			c.queries.end(tag{id: p.o.id, secret: p.o.secret}, err)
		}
	case p.o.kind == kindProbe: // there will be another
	case p.n == 1:
		c.clerk.add(entry{to: p.d.pid, id: p.o.id, err: err})
	default:
		eachID(p.ids.first, p.steps(), func(id uint64) { c.clerk.add(entry{to: p.d.pid, id: id, err: err}) })
	}
}

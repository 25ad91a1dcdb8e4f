package fabric

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/internal/window"
)

// An outLink carries this node's messages to one process, each once and in order, as
// long as both live: what is not acknowledged is kept, and sent again when it is known
// to be lost (internal/window). It has one end, which is named: when the process that
// it led to is gone, or another has its PID, the link fails, and what was under way
// with it; the next message begins another.
type outLink struct {
	c    *courier
	d    *dest
	name string // a secret: whoever knows it may speak for the receiver
	// greeting is what a probe says of a stream, to a receiver that does not know
	// it yet; nil if the link is no stream's.
	greeting []byte
	open     *parcel // the one that may grow; guarded by batcher.mu
	usual    int     // size of the last ones that may not any more; guarded by batcher.mu

	life  uint64        // the receiver's incarnation when the link began; 0: not in the view
	large chan struct{} // capacity 1: holds a token while a message in parts is under way

	mu      sync.Mutex // guards the fields below
	win     *window.Sender
	kept    []*parcel     // not acknowledged, in order
	space   chan struct{} // closed, and made anew, when something was acknowledged or granted
	err     error         // why it failed
	begun   bool          // a probe was sent
	heard   bool          // the receiver has answered, ever
	parting uint64        // the id of the message in parts under way
	quiet   quiet
}

// quiet is for how long a link has not heard what it waits for.
type quiet struct {
	due     time.Time     // the next probe
	wait    time.Duration // until the one after it
	probes  int           // since it was heard
	since   time.Time     // the first of them
	bounced bool          // nobody received the last
}

const (
	// firstProbe is how long a link waits for an acknowledgement before it asks;
	// each time it waits twice as long, up to lastProbe.
	firstProbe = 200 * time.Millisecond
	lastProbe  = 2 * time.Second
	// quietLimit is how long a link that was never answered tries to reach a process
	// that is in the view and receives nothing.
	quietLimit = 10 * time.Second
)

// firstGrant is what a link may send before it has heard from its receiver. Nobody
// grants less.
var firstGrant = window.Grant{Seq: 256, Bytes: 512 << 10}

// link returns the link to d, a new one if there is none.
func (c *courier) link(d *dest) (*outLink, error) {
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	life := c.cfg.lifeOf(d.pid)
	if l := c.links.out[d.pid]; l != nil {
		if !l.outlived(life) {
			return l, nil
		}
		delete(c.links.byName, l.name)
	}
	if c.closed.Load() {
		return nil, ErrClosed
	}
	l := c.newLink(d)
	l.life = life
	c.links.out[d.pid] = l
	return l, nil
}

// outlived reports whether the link leads to a process that is known to have been
// followed by another, and nothing is under way on it.
func (l *outLink) outlived(life uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return life != 0 && l.life != 0 && life != l.life && l.win.Idle()
}

func (c *courier) newLink(d *dest) *outLink {
	l := &outLink{
		c: c, d: d, name: random(secretLen), win: window.NewSender(firstGrant),
		space: make(chan struct{}), large: make(chan struct{}, 1),
	}
	c.links.byName[l.name] = l
	return l
}

// postLinked sends o on the link to d, in parts if it is large. It waits while the
// window is full.
func (c *courier) postLinked(ctx context.Context, d *dest, o *outgoing) error {
	if head := (&item{header: o.header}).size(); head > uint64(c.chunk()) {
		return fmt.Errorf("%w: its header has %d bytes", ErrTooLarge, head)
	}
	l, err := c.link(d)
	if err != nil {
		return err
	}
	it := item{kind: o.kind, typ: o.typ, id: o.id, secret: o.secret, header: o.header, data: o.data}
	if len(o.data) > c.chunk() {
		err = l.addLarge(ctx, &it)
	} else {
		err = l.add(ctx, &it)
	}
	if err == nil {
		c.sent.Add(1)
	}
	return err
}

// add sends it when the window has room, which it waits for.
func (l *outLink) add(ctx context.Context, it *item) error {
	size := it.size()
	l.mu.Lock()
	for l.err == nil && !l.win.Room(size) {
		space := l.space
		l.mu.Unlock()
		select {
		case <-space:
		case <-ctx.Done():
			return fmt.Errorf("the window of %s is full: %w", l.d.pid, context.Cause(ctx))
		case <-l.c.done:
			return ErrClosed
		}
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	idle := l.win.Idle()
	if !l.begun {
		l.begun = true
		l.probe()
	}
	l.c.batcher.link(l, l.win.Take(size), it)
	if idle {
		l.quiet = quiet{due: time.Now().Add(firstProbe), wait: firstProbe}
		l.c.links.rouse()
	}
	return nil
}

// keep is called by the batcher, within add, with what may have to be sent again.
func (l *outLink) keep(p *parcel) { l.kept = append(l.kept, p) }

// probe asks the receiver for its state, behind all that was sent. It needs l.mu.
func (l *outLink) probe() {
	number, base := l.win.Probe()
	o := outgoing{kind: kindProbe, id: base, secret: l.name, seq: number, data: l.greeting}
	if err := l.c.batcher.after(l.d, o, nil); err != nil {
		l.c.log.Debug("link: not asked", "pid", l.c.cfg.pid, "to", l.d.pid, "err", err)
	}
}

// state takes in what the receiver says.
func (l *outLink) state(st window.State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	progress, again := l.win.Heard(st)
	l.heard = true
	l.quiet = quiet{due: time.Now().Add(firstProbe), wait: firstProbe}
	n := 0
	for n < len(l.kept) && l.kept[n].last <= l.win.Acked() {
		l.kept[n] = nil
		n++
	}
	if l.kept = l.kept[n:]; len(l.kept) == 0 {
		l.kept = nil
	}
	if progress {
		close(l.space)
		l.space = make(chan struct{})
	}
	if again {
		l.c.batcher.again(l.kept)
	}
}

// bounced notes that nobody received a message or probe of the link.
func (l *outLink) bounced() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.quiet.bounced = true
	l.c.links.rouse()
}

// fail ends the link. The clerk reports what was under way.
func (l *outLink) fail(err error) {
	l.c.links.mu.Lock()
	if l.c.links.out[l.d.pid] == l {
		delete(l.c.links.out, l.d.pid)
	}
	delete(l.c.links.byName, l.name)
	l.c.links.mu.Unlock()

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = err
	close(l.space)
	if l.greeting == nil { // the writer of a stream learns it by itself
		for _, id := range l.pending() {
			l.c.clerk.add(entry{to: l.d.pid, id: id, err: err})
		}
	}
	l.kept = nil
}

// pending returns the ids of the messages that are not acknowledged, but of the one
// whose sender still waits. It needs l.mu.
func (l *outLink) pending() []uint64 {
	var ids []uint64
	seq := l.win.Next()
	if len(l.kept) > 0 {
		seq = l.kept[0].last - uint64(l.kept[0].n) + 1
	}
	for _, p := range l.kept {
		r := frameReader{b: p.buf}
		for it := (item{}); r.next(&it); seq++ {
			if seq > l.win.Acked() && it.kind != kindPart && (!it.more || it.id != l.parting) {
				ids = append(ids, it.id)
			}
		}
	}
	return ids
}

// settled waits until all that was sent before is acknowledged, or the link failed.
func (l *outLink) settled(ctx context.Context) error {
	l.mu.Lock()
	last := l.win.Next() - 1
	for l.err == nil && l.win.Acked() < last {
		space := l.space
		l.mu.Unlock()
		select {
		case <-space:
		case <-ctx.Done():
			return fmt.Errorf("%s has not acknowledged everything: %w", l.d.pid, context.Cause(ctx))
		case <-l.c.done:
			return ErrClosed
		}
		l.mu.Lock()
	}
	l.mu.Unlock()
	return nil // what failed, the clerk knows
}

// size is what a message counts for in a window.
func (it *item) size() uint64 {
	n := len(it.data)
	for key, values := range it.header {
		for _, v := range values {
			n += len(key) + len(v)
		}
	}
	return uint64(n)
}

package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
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
	over  atomic.Bool   // it failed: what is queued is not published any more

	mu      sync.Mutex // guards the fields below
	win     *window.Sender
	kept    []*parcel     // not acknowledged, in order
	larges  []underway    // messages in parts that are not acknowledged, in order
	space   chan struct{} // closed, and made anew, when something was acknowledged or granted
	waiting int           // calls of add that wait for it
	err     error         // why it failed
	renew   bool          // it did for want of the receiver's end: what was not sent goes on another
	begun   bool          // a probe was sent
	heard   bool          // the receiver has answered, ever
	asked   int           // probes sent
	refused int           // of these, how many nobody received
	quiet   quiet
}

// An underway is a message on a link. If it is in parts, the first, which names it, may be
// acknowledged long before the last.
type underway struct {
	kind   kind
	id     uint64
	secret string
	first  uint64 // number of it, or its first part
	last   uint64 // of its last part; 0 until that is sent
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
		if !l.retire(life) {
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

// errRenewed: the message was not sent, and is to go on another link.
var errRenewed = errors.New("the link was replaced")

// retire ends the link if nobody uses it, and it leads to a process that is known to
// have been followed by another, or the receiver may soon have forgotten it.
func (l *outLink) retire(life uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.win.Idle() || l.waiting > 0 || len(l.large) > 0 || l.err != nil {
		return false
	}
	followed := life != 0 && l.life != 0 && life != l.life
	if !followed && (!l.begun || time.Since(l.quiet.due) < linkIdle/2) {
		return false
	}
	l.err, l.renew = errRenewed, true
	close(l.space)
	return true
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
	it := item{kind: o.kind, typ: o.typ, id: o.id, secret: o.secret, header: o.header, data: o.data}
	err := errRenewed
	for err == errRenewed {
		l, linkErr := c.link(d)
		switch {
		case linkErr != nil:
			return linkErr
		case len(o.data) > c.chunk():
			err = l.addLarge(ctx, &it)
		default:
			err = l.add(ctx, &it, nil)
		}
	}
	if err == nil {
		c.sent.Add(1)
	}
	return err
}

// add sends it when the window has room, which it waits for. With errRenewed it was not
// sent. A part may be read from its memory as long as loan lasts.
func (l *outLink) add(ctx context.Context, it *item, loan *loan) error {
	size := it.size()
	l.mu.Lock()
	for l.err == nil && !l.win.Room(size) {
		if err := l.await(ctx); err != nil {
			l.mu.Unlock()
			return err
		}
	}
	defer l.mu.Unlock()
	switch {
	case l.renew:
		return errRenewed
	case l.err != nil:
		return l.err
	}
	idle := l.idle()
	if !l.begun {
		l.begun = true
		l.probe()
	}
	seq := l.win.Take(size)
	if it.more && it.kind != kindPart {
		l.larges = append(l.larges, underway{kind: it.kind, id: it.id, secret: it.secret, first: seq})
	} else if n := len(l.larges); n > 0 && it.kind == kindPart && !it.more {
		l.larges[n-1].last = seq
	}
	l.c.batcher.link(l, seq, it, loan)
	if idle {
		l.listen()
	}
	return nil
}

// await waits until something may have room. It needs l.mu, and gives it back meanwhile.
func (l *outLink) await(ctx context.Context) error {
	idle, space := l.idle(), l.space
	l.waiting++
	if idle {
		l.listen() // the grant may have been told when nobody heard it
	}
	l.mu.Unlock()
	var err error
	select {
	case <-space:
	case <-ctx.Done():
		err = fmt.Errorf("the window of %s is full: %w", l.d.pid, context.Cause(ctx))
	case <-l.c.done:
		err = ErrClosed
	}
	l.mu.Lock()
	l.waiting--
	return err
}

// idle reports whether nothing is awaited of the receiver. It needs l.mu.
func (l *outLink) idle() bool {
	return l.win.Idle() && l.waiting == 0
}

// listen begins to wait for word of the receiver. It needs l.mu.
func (l *outLink) listen() {
	l.quiet = quiet{due: time.Now().Add(firstProbe), wait: firstProbe}
	l.c.links.rouse()
}

// keep is called by the batcher, within add, with what may have to be sent again.
func (l *outLink) keep(p *parcel) { l.kept = append(l.kept, p) }

// probe asks the receiver for its state, behind all that was sent. It needs l.mu.
func (l *outLink) probe() {
	number, base := l.win.Probe()
	o := outgoing{kind: kindProbe, id: base, secret: l.name, seq: number, data: l.greeting}
	if err := l.c.batcher.after(l.d, o, nil); err != nil {
		l.c.log.Debug("link: not asked", "pid", l.c.cfg.pid, "to", l.d.pid, "err", err)
		return
	}
	l.asked++
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
	if progress || !l.win.Idle() {
		l.quiet = quiet{due: time.Now().Add(firstProbe), wait: firstProbe}
	} else { // who waits for room is told when there is some, unless that is lost: asked less and less
		l.quiet = quiet{due: l.quiet.due, wait: l.quiet.wait}
	}
	n := 0
	for n < len(l.kept) && l.kept[n].last <= l.win.Acked() {
		l.kept[n].release()
		l.kept[n] = nil
		n++
	}
	if l.kept = l.kept[n:]; len(l.kept) == 0 {
		l.kept = nil
	}
	for len(l.larges) > 0 && l.larges[0].last != 0 && l.larges[0].last <= l.win.Acked() {
		l.larges = l.larges[1:]
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
func (l *outLink) bounced(k kind) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.quiet.bounced = true
	if k == kindProbe {
		l.refused++
	}
	l.c.links.rouse()
}

// reached reports whether a message may have been received: none is without a probe that
// was. It needs l.mu.
func (l *outLink) reached() bool {
	return l.heard || l.refused < l.asked
}

// fail ends the link. Who waits for an answer to what was under way is told, and of the
// rest the clerk.
func (l *outLink) fail(err error, renew bool) {
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
	l.err, l.renew = err, renew
	l.over.Store(true)
	close(l.space)
	if l.greeting == nil { // the writer of a stream learns it by itself
		for _, p := range l.pending() {
			l.c.failed(l.d.pid, p, err)
		}
	}
	l.kept, l.larges = nil, nil
}

// failed tells of a message that was under way on a link which failed.
func (c *courier) failed(to PID, p underway, err error) {
	switch {
	case p.kind.awaits():
		if w := c.calls.match(tag{id: p.id, secret: p.secret}, to); w != nil {
			w.answer <- answer{err: err}
		}
	case p.kind.answers():
		c.log.Warn("answer not sent", "pid", c.cfg.pid, "to", to, "id", p.id, "err", err)
	default:
		c.clerk.add(entry{to: to, id: p.id, err: err})
	}
}

// pending returns the messages that are not acknowledged, in order, but for one in parts
// whose sender has not sent them all: it learns it by itself. It needs l.mu.
func (l *outLink) pending() []underway {
	var pending []underway
	for _, p := range l.larges {
		if p.last != 0 {
			pending = append(pending, p)
		}
	}
	for _, p := range l.kept {
		if p.loan != nil {
			continue // a part
		}
		r := frameReader{b: p.buf}
		seq := p.last - uint64(p.n) + 1
		for it := (item{}); r.next(&it); seq++ {
			if seq > l.win.Acked() && it.kind != kindPart && !it.more {
				pending = append(pending, underway{kind: it.kind, id: it.id, secret: it.secret, first: seq})
			}
		}
	}
	slices.SortFunc(pending, func(a, b underway) int { return cmp.Compare(a.first, b.first) })
	return pending
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
func (it *item) size() uint64 { return uint64(len(it.data) + textOf(it.header)) }

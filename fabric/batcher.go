package fabric

import (
	"cmp"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/nats-io/nats.go"
)

// A batcher puts what a node sends in order, and small messages that would wait anyway
// into one publish: while the batcher is busy with earlier ones, those to one
// receiver gather in a parcel. There is no timer: a message that comes when nothing is
// under way is published at once, by its sender, bare.
//
// The order of one sender's messages is that of its calls, over sends, broadcasts and
// requests. So a parcel does not grow any more once something was queued after it that
// its receiver gets as well. One holds messages of which nothing comes back, or asks, or
// answers: each has its own way to learn that the publish failed.
type batcher struct {
	c     *courier
	alone bool          // never gather
	wake  chan struct{} // capacity 1: a token means that busy was set
	start time.Time
	// failing is set while publishing fails: then who sends shall learn it at once.
	failing atomic.Bool

	mu    sync.Mutex // guards the fields below, and dest.open, outLink.open and growing parcels
	room  *sync.Cond // bytes became less
	busy  bool       // the batcher publishes, or is about to: everybody else queues
	queue []*parcel
	spare []*parcel // the queue before, to be used again
	bytes int       // of the queue
	round uint64    // of the batcher: what is queued is of this one
	casts uint64    // queued for more than one receiver
	last  time.Duration

	offline   offline
	unflushed unflushed
}

const (
	// gatherAfter is how close two messages follow each other when it is worth to
	// have the batcher woken for the second. It takes a few microseconds to be.
	gatherAfter = 10 * time.Microsecond
	// maxFrame bounds a frame, in bytes, unless its only message is larger. A message
	// that is kept keeps its frame in memory.
	maxFrame = 32 << 10
	// maxGather bounds what waits for the batcher, which waits only for a server that
	// does not read. Senders then wait as well.
	maxGather = 4 << 20
)

func (b *batcher) init(c *courier) {
	b.c, b.alone = c, c.cfg.noBatch
	b.offline.cfg = c.cfg.offline
	b.offline.cfg.Messages = cmp.Or(b.offline.cfg.Messages, DefaultInboxMessages)
	b.offline.cfg.Bytes = cmp.Or(b.offline.cfg.Bytes, DefaultInboxBytes)
	b.wake = make(chan struct{}, 1)
	b.room = sync.NewCond(&b.mu)
	b.start = time.Now()
	b.last = -time.Hour
}

// post hands o to the connection, or queues it for the batcher. An error of
// publishing it then is the clerk's to report.
func (b *batcher) post(d *dest, o *outgoing) error {
	if b.alone && o.ttl <= 0 && !b.offline.waits.Load() {
		return b.c.emit(d, o)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	framed := o.framed(d)
	switch queued := b.take(framed && !b.alone); {
	case queued:
	case len(b.offline.queue) == 0:
		err := b.c.emit(d, o)
		if o.ttl > 0 && errors.Is(err, ErrDisconnected) && b.shelve(newParcel(d, o)) {
			return nil
		}
		b.last = time.Since(b.start)
		return err
	case b.resume(): // behind those that wait already
	case b.shelve(newParcel(d, o)):
		return nil
	default:
		return b.c.away()
	}
	if p := d.open; p != nil && framed && p.goesWith(o) && b.grows(p, len(o.data)) && b.joins(p, o) {
		p.add(o.item(), d.usual)
		b.bytes += len(o.data)
		return nil
	}
	p := newParcel(d, o)
	d.shut()
	if framed {
		d.open = p
	}
	b.push(p)
	return nil
}

// joins notes that o is in p as well, for whoever is told of the publish by the server. It
// reports whether that can be.
func (b *batcher) joins(p *parcel, o *outgoing) bool {
	switch {
	case o.kind.awaits():
		b.c.calls.gather(o.secret, p.o.secret)
		return true
	case o.kind.answers():
		return true
	}
	return p.ids.add(o.id)
}

// take decides whether a message is queued. It needs b.mu, and waits while too much
// is queued.
func (b *batcher) take(worth bool) bool {
	for b.bytes > maxGather && !b.c.closed.Load() {
		b.room.Wait()
	}
	if b.busy {
		return true
	}
	if !worth || b.failing.Load() || time.Since(b.start)-b.last > gatherAfter {
		return false
	}
	b.rouse()
	return true
}

func (b *batcher) rouse() {
	if !b.busy {
		b.busy = true
		b.wake <- struct{}{} // never waits: there is one token for each time busy is set
	}
}

// grows reports whether p, which is queued, may take n more bytes. It needs b.mu.
func (b *batcher) grows(p *parcel, n int) bool {
	if p.n >= maxFrameItems || len(p.buf)+n > maxFrame {
		return false
	}
	if p.d.plain != kindBroadcast {
		return p.casts == b.casts
	}
	return b.queue[len(b.queue)-1] == p
}

// push queues p. It needs b.mu.
func (b *batcher) push(p *parcel) {
	if p.d.plain == kindBroadcast {
		b.casts++
	}
	p.round, p.casts = b.round, b.casts
	b.queue = append(b.queue, p)
	b.bytes += p.weight()
}

// link hands over the message it, which is number seq of l, or has it wait in a
// parcel of l. A part may be read from its sender's memory, with loan. Its caller holds l.mu.
func (b *batcher) link(l *outLink, seq uint64, it *item, loan *loan) {
	b.mu.Lock()
	defer b.mu.Unlock()
	queued := b.take(!b.alone)
	if p := l.open; p != nil && queued && b.grows(p, len(it.data)) {
		p.add(it, l.usual)
		p.last = seq
		b.bytes += len(it.data)
		return
	}
	p := newLinked(l, seq, it, loan)
	l.keep(p)
	l.shut()
	if queued {
		if p.loan == nil {
			l.open = p
		}
		p.users.Add(1)
		b.push(p)
		return
	}
	p.round = b.round - 1 // it does not grow
	b.c.publishParcel(p, false)
	b.last = time.Since(b.start)
}

// shut has the open parcel grow no more. It needs batcher.mu.
func (d *dest) shut() {
	if d.open != nil {
		d.usual = max(len(d.open.buf), d.usual/2)
		d.open = nil
	}
}

// shut has the open parcel grow no more. It needs batcher.mu.
func (l *outLink) shut() {
	if l.open != nil {
		l.usual = max(len(l.open.buf), l.usual/2)
		l.open = nil
	}
}

// again queues parcels of a link that were published before. Those that were not are
// queued already.
func (b *batcher) again(ps []*parcel) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range ps {
		if p.round != b.round {
			p.users.Add(1)
			b.queue = append(b.queue, p)
			b.bytes += p.weight()
		}
	}
	b.rouse()
}

// after publishes o to d behind everything queued. The parcel's marker is answered if
// that fails later.
func (b *batcher) after(d *dest, o outgoing, marker *call) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.busy && !b.resume() {
		if len(b.offline.queue) > 0 && marker != nil {
			return b.c.away() // not before what waits
		}
		return b.c.emit(d, &o)
	}
	b.push(&parcel{d: d, o: o, data: o.data, n: 1, marker: marker})
	return nil
}

// idle reports whether nothing is queued.
func (b *batcher) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.busy
}

// close ends all waiting.
func (b *batcher) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.room.Broadcast()
}

// run is the batcher.
func (b *batcher) run() {
	for {
		select {
		case <-b.wake:
			b.drain()
		case <-b.c.done:
			b.drain()
			return
		}
	}
}

// drain publishes until nothing is queued. What waited for the connection is first, and
// while any of it still does, the rest waits behind.
func (b *batcher) drain() {
	behind := false
	for {
		b.mu.Lock()
		var late []*parcel
		if len(b.offline.queue) > 0 {
			late = b.late(time.Now())
		}
		batch := b.queue
		b.queue, b.spare = b.spare[:0], nil
		if waits := len(b.offline.queue) > 0; waits && b.c.nc.IsConnected() && (len(batch) > 0 || !behind) {
			batch, behind = append(b.offline.take(), batch...), false
		} else {
			behind = waits
		}
		b.round++
		b.bytes = 0
		b.room.Broadcast()
		for _, p := range batch { // they do not grow any more
			if p.d.open == p {
				p.d.shut()
			}
			if p.link != nil && p.link.open == p {
				p.link.shut()
			}
		}
		if len(batch) == 0 {
			b.busy = false
			b.spare = batch
			b.last = time.Since(b.start)
			b.offline.waits.Store(len(b.offline.queue) > 0)
			b.mu.Unlock()
			b.lapsed(late)
			return
		}
		b.mu.Unlock()
		b.lapsed(late)
		for i, p := range batch {
			batch[i] = nil
			if done := b.c.publishParcel(p, behind); !done {
				behind = true
			} else if p.link == nil {
				parcels.Put(p)
			} else {
				p.release()
			}
		}
		b.mu.Lock()
		b.spare = batch[:0]
		b.mu.Unlock()
		runtime.Gosched() // senders first: what they add goes out together
	}
}

// framed reports whether o may be one of several messages in a frame to d. What asks
// nobody in particular may not: each has a receiver of its own.
func (o *outgoing) framed(d *dest) bool {
	return len(o.header) == 0 && (!o.kind.secret() || o.kind.awaits() && d.one() || o.kind.answers())
}

// ordered reports whether o keeps its place among what was sent before and after it.
func (o *outgoing) ordered() bool { return !o.kind.answers() && o.kind != kindProbe }

func (o *outgoing) item() *item {
	return &item{kind: o.kind, typ: o.typ, id: o.id, secret: o.secret, data: o.data}
}

// emit hands o to the connection.
func (c *courier) emit(d *dest, o *outgoing) error {
	var buf [256]byte // on the stack; longer names make append allocate
	address := buf[:0]
	if o.kind == d.plain && o.typ == "" && d.head != "" {
		address = appendID(append(address, d.head...), o.id)
	} else {
		t := tag{kind: o.kind, nonce: cmp.Or(o.nonce, c.nonce), typ: o.typ, id: o.id, secret: o.secret, seq: o.seq, steps: o.steps}
		address = t.append(append(address, d.reply...))
	}
	// What is published is copied at once, so it needs no string of its own.
	reply := unsafe.String(unsafe.SliceData(address), len(address))
	first := o.kind.silent() && !c.batcher.unflushed.some.Load()
	var conn uint64
	if first || o.kind == kindFlush {
		conn = c.nc.Stats().Reconnects
	}
	if o.kind == kindFlush {
		c.batcher.unflushed.marked(o.id, conn)
	}
	var err error
	if o.kind == kindFlush || d.plain == kindAnswer {
		err = c.nc.Publish(reply, o.data) // to be heard, not to be answered
	} else if len(o.header) == 0 {
		err = c.nc.PublishRequest(d.subject, reply, o.data)
	} else {
		err = c.nc.PublishMsg(&nats.Msg{Subject: d.subject, Reply: string(address), Header: o.header, Data: o.data})
	}
	if failed := err != nil; failed != c.batcher.failing.Load() {
		c.batcher.failing.Store(failed)
	}
	if err != nil {
		return c.publishError(err, len(o.data))
	}
	if first {
		c.batcher.unflushed.sent(conn)
	}
	return nil
}

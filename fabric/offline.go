package fabric

import (
	"slices"
	"time"
)

// An Offline buffer keeps messages of mode Fast while the connection is down. By
// default there is none: a send then fails at once with [ErrDisconnected].
//
// They are sent in order when the connection is back. Those that are too old by then
// are not, and are reported as undeliverable with [ErrDisconnected] when they
// become so. It is for an owned connection; a borrowed one has nats.go's own buffer.
type Offline struct {
	// TTL is how long a message is kept that says nothing else ([Message].TTL). Zero keeps
	// none of these.
	TTL time.Duration
	// Messages and Bytes bound the buffer; when one is reached, a send fails with
	// [ErrDisconnected]. Default DefaultInboxMessages and DefaultInboxBytes.
	Messages int
	Bytes    int64
}

// offline holds what waits for the connection. It is guarded by batcher.mu.
type offline struct {
	cfg   Offline
	queue []waiting
	n     int   // messages
	bytes int64 // of them
}

type waiting struct {
	p     *parcel
	until time.Time
}

// shelve keeps p for later, if that is wanted and there is room. It needs b.mu.
func (b *batcher) shelve(p *parcel) bool {
	f := &b.offline
	if p.o.ttl <= 0 || p.o.kind.awaits() || p.marker != nil || p.link != nil ||
		f.n+p.n > f.cfg.Messages || f.bytes+int64(len(p.buf)) > f.cfg.Bytes {
		return false
	}
	f.queue = append(f.queue, waiting{p, time.Now().Add(p.o.ttl)})
	f.n += p.n
	f.bytes += int64(len(p.buf))
	b.c.links.rouse() // the keeper looks for those that become too old
	return true
}

// shelveFailed is shelve for a parcel that could not be published.
func (b *batcher) shelveFailed(p *parcel) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.shelve(p)
}

// unshelve queues what waited for the connection, which is back.
func (b *batcher) unshelve() {
	b.lapse(time.Now())
	b.mu.Lock()
	defer b.mu.Unlock()
	f := &b.offline
	for _, w := range f.queue {
		w.p.d.open = nil
		b.push(w.p)
	}
	if len(f.queue) > 0 {
		f.queue, f.n, f.bytes = nil, 0, 0
		b.rouse()
	}
}

// lapse reports what has waited too long, and whether anything waits.
func (b *batcher) lapse(now time.Time) (waits bool) {
	b.mu.Lock()
	f := &b.offline
	var late []*parcel
	f.queue = slices.DeleteFunc(f.queue, func(w waiting) bool {
		if now.Before(w.until) {
			return false
		}
		late = append(late, w.p)
		f.n -= w.p.n
		f.bytes -= int64(len(w.p.buf))
		return true
	})
	waits = len(f.queue) > 0
	b.mu.Unlock()
	for _, p := range late {
		p.report(b.c, ErrDisconnected)
	}
	return waits
}

// shelved returns how many messages wait for the connection.
func (b *batcher) shelved() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.offline.n
}

package fabric

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// An Offline buffer keeps messages of mode Fast while the connection is down. By
// default there is none: a send then fails at once with [ErrDisconnected].
//
// They are sent in order when the connection is back, before all that is sent later: a
// request, and what may not wait, fails with [ErrDisconnected] until then. Those that are
// too old by then are not, and are reported as undeliverable with [ErrDisconnected] when
// they become so. It is for an owned connection; a borrowed one has nats.go's own buffer.
type Offline struct {
	// TTL is how long a message is kept that says nothing else ([Message].TTL). Zero keeps
	// none of these.
	TTL time.Duration
	// Messages and Bytes bound the buffer; when one is reached, a send fails with
	// [ErrDisconnected]. Default DefaultInboxMessages and DefaultInboxBytes.
	Messages int
	Bytes    int64
}

// offline holds what waits for the connection. It is guarded by batcher.mu, but for waits.
type offline struct {
	cfg   Offline
	queue []*parcel
	n     int   // messages
	bytes int64 // of them
	// waits is set from when something waits until it is with the connection, before
	// which nobody else publishes.
	waits atomic.Bool
}

// shelve keeps p for later, if that is wanted and there is room. It needs b.mu.
func (b *batcher) shelve(p *parcel) bool {
	f := &b.offline
	if p.o.ttl <= 0 || p.o.kind.awaits() || p.marker != nil || p.link != nil ||
		f.n+p.n > f.cfg.Messages || f.bytes+int64(len(p.buf)) > f.cfg.Bytes {
		return false
	}
	if p.until.IsZero() {
		p.until = time.Now().Add(p.o.ttl)
	}
	f.queue = append(f.queue, p)
	f.n += p.n
	f.bytes += int64(len(p.buf))
	f.waits.Store(true)
	b.c.links.rouse() // the keeper looks for those that become too old
	return true
}

// shelveFailed is shelve for a parcel that could not be published.
func (b *batcher) shelveFailed(p *parcel) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.shelve(p)
}

// take removes and returns all. It needs batcher.mu.
func (f *offline) take() []*parcel {
	all := f.queue
	f.queue, f.n, f.bytes = nil, 0, 0
	return all
}

// unshelve has what waited for the connection published, if that is back.
func (b *batcher) unshelve() { b.lapse(time.Now()) }

// resume wakes the batcher if something waits for the connection, which is back, and
// reports whether it is so. It needs b.mu.
func (b *batcher) resume() bool {
	if len(b.offline.queue) == 0 || !b.c.nc.IsConnected() {
		return false
	}
	b.rouse()
	return true
}

// lapse reports what has waited too long, has the rest published if the connection is
// back, and reports whether anything waits.
func (b *batcher) lapse(now time.Time) (waits bool) {
	b.mu.Lock()
	late := b.late(now)
	b.resume()
	waits = len(b.offline.queue) > 0
	if !waits && !b.busy {
		b.offline.waits.Store(false)
	}
	b.mu.Unlock()
	b.lapsed(late)
	return waits
}

// late removes and returns what has waited too long. It needs b.mu.
func (b *batcher) late(now time.Time) (late []*parcel) {
	f := &b.offline
	f.queue = slices.DeleteFunc(f.queue, func(p *parcel) bool {
		if now.Before(p.until) {
			return false
		}
		late = append(late, p)
		f.n -= p.n
		f.bytes -= int64(len(p.buf))
		return true
	})
	return late
}

func (b *batcher) lapsed(late []*parcel) {
	for _, p := range late {
		p.report(b.c, ErrDisconnected)
	}
}

// shelved returns how many messages wait for the connection.
func (b *batcher) shelved() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.offline.n
}

// away is the error of what is not sent because others wait for the connection.
func (c *courier) away() error {
	if c.nc.IsClosed() {
		return natsError(nats.ErrConnectionClosed)
	}
	return ErrDisconnected
}

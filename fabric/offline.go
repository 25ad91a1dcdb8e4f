package fabric

import "time"

// An Offline buffer keeps messages of mode Fast while the connection is down. By
// default there is none: a send then fails at once with [ErrDisconnected].
//
// They are sent in order when the connection is back. Those that are too old by then
// are not, and are reported as undeliverable with [ErrDisconnected] when they
// become so. It is for an owned connection; a borrowed one has nats.go's own buffer.
type Offline struct {
	// TTL is how long a message is kept. Zero keeps none.
	TTL time.Duration
	// Messages and Bytes bound the buffer; when one is reached, a send fails with
	// [ErrDisconnected]. Default DefaultInboxMessages and DefaultInboxBytes.
	Messages int
	Bytes    int64
}

// offline holds what waits for the connection. It is guarded by gather.mu.
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

// shelve keeps p for later, if that is wanted and there is room. It needs g.mu.
func (g *gather) shelve(p *parcel) bool {
	f := &g.offline
	if f.cfg.TTL <= 0 || p.o.kind.awaits() || p.marker != nil || p.link != nil ||
		f.n+p.n > f.cfg.Messages || f.bytes+int64(len(p.buf)) > f.cfg.Bytes {
		return false
	}
	f.queue = append(f.queue, waiting{p, time.Now().Add(f.cfg.TTL)})
	f.n += p.n
	f.bytes += int64(len(p.buf))
	g.c.links.rouse() // the keeper looks for those that become too old
	return true
}

// shelveFailed is shelve for a parcel that could not be published.
func (g *gather) shelveFailed(p *parcel) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shelve(p)
}

// unshelve queues what waited for the connection, which is back.
func (g *gather) unshelve() {
	g.lapse(time.Now())
	g.mu.Lock()
	defer g.mu.Unlock()
	f := &g.offline
	for _, w := range f.queue {
		w.p.d.open = nil
		g.push(w.p)
	}
	if len(f.queue) > 0 {
		f.queue, f.n, f.bytes = nil, 0, 0
		g.rouse()
	}
}

// lapse reports what has waited too long, and whether anything waits.
func (g *gather) lapse(now time.Time) (waits bool) {
	g.mu.Lock()
	f := &g.offline
	n := 0
	for n < len(f.queue) && !now.Before(f.queue[n].until) {
		f.n -= f.queue[n].p.n
		f.bytes -= int64(len(f.queue[n].p.buf))
		n++
	}
	late := f.queue[:n]
	f.queue = f.queue[n:]
	waits = len(f.queue) > 0
	g.mu.Unlock()
	for _, w := range late {
		w.p.report(g.c, ErrDisconnected)
	}
	return waits
}

// shelved returns how many messages wait for the connection.
func (g *gather) shelved() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.offline.n
}

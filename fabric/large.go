package fabric

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"sync"
	"time"
	"unsafe"
)

// A message too large for one publish goes over a link in parts. Each has the checksum
// of the message so far, so that the last has that of the whole; the link sees to it
// that they come in order and none is missing, and grants no more at a time than its
// window.
const (
	// maxChunk is the size above which a message is sent in parts, and that of a
	// part; less if the server takes less.
	maxChunk = 256 << 10
	// stallLimit is how long a message in parts is kept that does not continue.
	stallLimit = 30 * time.Second
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chunk returns the size of a part.
func (c *courier) chunk() int {
	limit := int(c.nc.MaxPayload())
	return max(min(maxChunk, limit-limit/4), 64)
}

// largeFrames are empty frames with room for a part of maxChunk bytes and a head, to be
// used again: fresh memory for each costs more than to copy the part.
var largeFrames = sync.Pool{New: func() any {
	b := make([]byte, 0, maxChunk+512)
	return &b
}}

// release says that one of those who may read the frame of p, which is a link's, does not
// any more. When the last has, another part gets it.
func (p *parcel) release() {
	if p.users.Add(-1) > 0 || cap(p.buf) < maxChunk || cap(p.buf) > 2*maxChunk {
		return
	}
	b := p.buf[:0]
	p.buf, p.data = nil, nil
	largeFrames.Put(&b)
}

// addLarge sends it in parts. It returns when the last is under way.
func (l *outLink) addLarge(ctx context.Context, it *item) (err error) {
	select {
	case l.large <- struct{}{}: // one at a time: the parts say only that they follow
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-l.c.done:
		return ErrClosed
	}
	defer func() { <-l.large }()
	size, rest := l.c.chunk(), it.data
	loan := loan{part: size}
	defer loan.end(l)
	part := *it
	part.total, part.more = uint64(len(rest)), true
	for first := true; ; first = false {
		part.data = rest[:min(size, len(rest))]
		rest = rest[len(part.data):]
		part.more, part.hasCRC = len(rest) > 0, true
		part.crc = crc32.Update(part.crc, castagnoli, part.data)
		if err := l.add(ctx, &part, &loan); err != nil {
			if !first {
				return l.giveUp(err)
			}
			return err
		}
		if !part.more {
			return nil
		}
		part = item{kind: kindPart, crc: part.crc}
	}
}

// giveUp tells the receiver that the parts so far are all that comes, if the window
// has room; the next message in parts says so, too. It returns why: err, or what the
// link failed of.
func (l *outLink) giveUp(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.larges = l.larges[:len(l.larges)-1]
	if l.win.Room(0) {
		l.c.batcher.link(l, l.win.Take(0), &item{kind: kindPart}, nil)
	}
	return err
}

// A loan is the memory of a message in parts, while its sender waits for the last to be under
// way: parts are published from there, without a frame. Copies of all would take a thirtieth of the
// time to send them, and more memory.
type loan struct {
	part    int        // the size of each
	parcels []*parcel  // guarded by outLink.mu
	mu      sync.Mutex // held while the data of the parcels is read, or replaced
}

// take reports whether it can be published from its memory: a part of the usual size that is
// not the last. p reads it from there then.
func (x *loan) take(p *parcel, it *item) bool {
	if x == nil || it.kind != kindPart || !it.more || len(it.data) <= maxChunk/2 {
		return false
	}
	p.data, p.loan = it.data, x
	x.parcels = append(x.parcels, p)
	return true
}

// end gives the memory back: nobody reads it any more. What is not acknowledged, a window at
// most, is copied; it may have to be sent again.
func (x *loan) end(l *outLink) {
	if len(x.parcels) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	x.mu.Lock() // when none is being published
	defer x.mu.Unlock()
	for _, p := range x.parcels {
		if l.err != nil || p.last <= l.win.Acked() {
			p.data = nil
		} else {
			p.buf = append(*largeFrames.Get().(*[]byte), p.data...)
			p.data = p.buf
		}
	}
	x.parcels = nil
}

// A partial is a message of which some parts have come.
type partial struct {
	item  item // the first part; its data is what came, once there is memory for all
	total int64
	parts [][]byte // what came before there was
	size  int64    // of what came
	crc   uint32   // of what came
	skip  bool     // it was refused: the parts that come are dropped
}

var (
	errNoMemory = errors.New("no memory at the moment")
	errChecksum = errors.New("checksum does not match")
)

// part takes in a part, and returns the message if it is the last. It needs in.mu.
func (in *inLink) part(it *item) (*partial, error) {
	if it.kind != kindPart {
		if err := in.beginPartial(it); err != nil {
			return nil, err
		}
	}
	p := in.partial
	if p == nil {
		return nil, nil // of a message that was dropped
	}
	if !it.more && !it.hasCRC { // its sender gave up
		in.dropPartial()
		return nil, nil
	}
	crc := crc32.Update(p.crc, castagnoli, it.data)
	if crc != it.crc {
		return nil, errChecksum
	}
	p.crc = crc
	if p.skip {
		if !it.more {
			in.partial = nil
		}
		return nil, nil
	}
	if p.size += int64(len(it.data)); p.size > p.total {
		in.dropPartial()
		return nil, fmt.Errorf("more than the %d bytes announced", p.total)
	}
	p.keep(it.data)
	if it.more {
		return nil, nil
	}
	if p.size != p.total {
		in.dropPartial()
		return nil, fmt.Errorf("%d of the %d bytes announced", p.size, p.total)
	}
	in.partial = nil // its memory is given back when the program takes it
	return p, nil
}

// keep adds a part. The memory for the whole is allocated when a quarter has come, so that
// nobody gets more by claiming a total; from then on parts are copied as they come, while
// they are in the processor's cache.
func (p *partial) keep(part []byte) {
	if p.item.data == nil {
		if p.size < p.total/4 {
			p.parts = append(p.parts, part)
			return
		}
		p.item.data = uncleared(int(p.total))
		for _, before := range p.parts {
			p.item.data = append(p.item.data, before...)
		}
		p.parts = nil
	}
	p.item.data = append(p.item.data, part...)
}

// uncleared is make([]byte, 0, n) without the zeros, which take as long as to fill it.
func uncleared(n int) []byte {
	var b strings.Builder // whose memory nobody else knows of
	b.Grow(n)
	b.WriteByte(0)
	return unsafe.Slice(unsafe.StringData(b.String()), n)[:0]
}

func (in *inLink) beginPartial(it *item) error {
	in.dropPartial() // its sender gave up
	p := &partial{item: *it, total: int64(min(it.total, 1<<62))}
	p.item.data = nil
	if p.total > in.c.memory.limit {
		p.skip = true
		in.c.notices.add(notice{m: in.message(it), tooLarge: true, refused: true})
	} else if !in.c.memory.reserve(p.total, in) {
		return errNoMemory
	}
	in.partial = p
	return nil
}

// dropPartial forgets what came of a message. It needs in.mu.
func (in *inLink) dropPartial() {
	if p := in.partial; p != nil {
		in.partial = nil
		if !p.skip {
			in.c.memory.free(p.total)
		}
	}
}

// A memory bounds what messages in parts take: those that come, and those that wait
// in the inbox. All of a message is reserved when it begins, so that each that began
// can be completed.
type memory struct {
	limit int64

	mu      sync.Mutex // guards the fields below
	used    int64
	waiting []*inLink // were refused some
}

func (q *memory) reserve(n int64, in *inLink) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used+n <= q.limit {
		q.used += n
		return true
	}
	q.waiting = append(q.waiting, in)
	return false
}

// reserved is how much is in use.
func (q *memory) reserved() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.used
}

// free gives n bytes back, and has those told who wait for some. It takes no link's
// lock: the caller may have one.
func (q *memory) free(n int64) {
	q.mu.Lock()
	q.used -= n
	waiting := q.waiting
	q.waiting = nil
	q.mu.Unlock()
	for _, in := range waiting {
		in.resume.Store(true)
		in.c.links.tell(in)
	}
}

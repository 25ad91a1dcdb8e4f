package fabric

import (
	"cmp"
	"context"
	"runtime"
	"sync"
)

// An inbox is the queue between the dispatcher and those who receive. It holds
// at most maxMsgs messages and maxBytes bytes, not counting those whose link holds
// their sender back; what does not fit is refused or dropped, at once, so the
// dispatcher never waits. Chunks of the queue are freed as they are emptied, so an idle
// inbox costs next to nothing.
type inbox struct {
	maxMsgs  int
	maxBytes int64
	quota    int // of one sender; 0: none
	onFull   Policy
	// wake has capacity 1: a token in it means that somebody who waits should
	// look again. A second token would say nothing new.
	wake chan struct{}

	mu         sync.Mutex // guards the fields below
	head, tail *chunk
	first      int // index of the oldest message in head
	last       int // index after the newest message in tail
	n          int
	bound      int   // of n, those that the limits count
	bytes      int64 // of those
	bySender   map[PID]int
	waiting    int   // in take, to be woken
	mail       int   // of n, those that a mailbox counts, and that are not dropped
	mailBytes  int64 // of those
	working    int   // messages that are being handled, without mail
	received   uint64
	rejected   uint64
	dropped    uint64
	room       chan struct{} // closed by the next take; nil if nobody waits
}

const chunkLen = 256

type chunk struct {
	next *chunk
	msgs [chunkLen]*Message
}

func newInbox(cfg Inbox) *inbox {
	q := &inbox{
		maxMsgs:  cmp.Or(cfg.Messages, DefaultInboxMessages),
		maxBytes: cmp.Or(cfg.Bytes, DefaultInboxBytes),
		quota:    cfg.PerSender, onFull: cfg.OnFull,
		wake: make(chan struct{}, 1),
	}
	if q.quota > 0 {
		q.bySender = make(map[PID]int)
	}
	return q
}

// put appends the batch in order and returns the messages that were refused.
func (q *inbox) put(batch []*Message) (refused []*Message) {
	var dropped []*Message
	q.mu.Lock()
	for _, m := range batch {
		if q.limited(m) && !q.admit(m, &dropped) {
			refused = append(refused, m)
			continue
		}
		q.n++
		q.received++
		q.push(m)
	}
	wake := q.waiting > 0 && q.n > 0
	q.mu.Unlock()
	if wake {
		q.signal()
	}
	for _, m := range dropped {
		m.taken()
	}
	return refused
}

// limited reports whether m is one that the limits count.
func (q *inbox) limited(m *Message) bool { return m.link() == nil || q.onFull != Block }

// admit makes room for m, or says that there is none. It needs q.mu.
func (q *inbox) admit(m *Message, dropped *[]*Message) bool {
	size := m.size()
	for q.full(m.From, size) {
		if q.onFull != DropOldest || q.mail >= q.maxMsgs || q.mailBytes+size > q.maxBytes || q.quota > 0 && q.bySender[m.From] >= q.quota {
			if q.onFull == DropNewest || q.onFull == DropOldest {
				q.dropped++
			} else {
				q.rejected++
			}
			return false
		}
		old := q.evict()
		q.gone(old)
		q.dropped++
		*dropped = append(*dropped, old)
	}
	q.bound++
	q.bytes += size
	if q.quota > 0 {
		q.bySender[m.From]++
	}
	return true
}

func (q *inbox) full(from PID, size int64) bool {
	return q.bound >= q.maxMsgs || q.bytes+size > q.maxBytes || q.quota > 0 && q.bySender[from] >= q.quota
}

// gone notes that m, which was popped, waits no more. It needs q.mu.
func (q *inbox) gone(m *Message) {
	q.n--
	if m.isMail() {
		q.mail--
		q.mailBytes -= m.size()
	}
	if !q.limited(m) {
		return
	}
	q.bound--
	q.bytes -= m.size()
	if q.quota > 0 {
		if q.bySender[m.From]--; q.bySender[m.From] == 0 {
			delete(q.bySender, m.From)
		}
	}
}

// offer appends m, or returns what is closed when there may be room for it. A message
// larger than the inbox is taken when that is empty. Its sender's quota does not count:
// the mailbox has its own.
func (q *inbox) offer(m *Message) (room <-chan struct{}) {
	size := m.size()
	q.mu.Lock()
	if q.n > 0 && (q.bound >= q.maxMsgs || q.bytes+size > q.maxBytes) {
		defer q.mu.Unlock()
		if q.room == nil {
			q.room = make(chan struct{})
		}
		return q.room
	}
	q.n++
	q.mail++
	q.mailBytes += size
	q.bound++
	q.bytes += size
	if q.quota > 0 {
		q.bySender[m.From]++
	}
	q.received++
	q.push(m)
	wake := q.waiting > 0
	q.mu.Unlock()
	if wake {
		q.signal()
	}
	return nil
}

// take removes and returns the oldest message. It waits for one until ctx ends,
// whose cause it returns, or closed does; what the inbox holds then can still be
// taken. work is 1 if worked is called when it has been handled.
func (q *inbox) take(ctx context.Context, closed <-chan struct{}, work int) (*Message, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	q.mu.Lock()
	if q.n == 0 {
		q.mu.Unlock()
		runtime.Gosched() // waking costs more than looking again
		q.mu.Lock()
	}
	for q.n == 0 {
		q.waiting++
		q.mu.Unlock()
		var err error
		select {
		case <-q.wake:
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-closed:
			err = ErrClosed
		}
		q.mu.Lock()
		q.waiting--
		if err != nil && (q.n == 0 || err != ErrClosed) {
			q.mu.Unlock()
			return nil, err
		}
	}
	m := q.pop()
	q.gone(m)
	if !m.isMail() {
		q.working += work
	}
	wake := q.waiting > 0 && q.n > 0
	if q.room != nil {
		close(q.room)
		q.room = nil
	}
	q.mu.Unlock()
	if wake {
		q.signal()
	}
	m.taken()
	return m, nil
}

func (q *inbox) worked(m *Message) {
	if m.isMail() {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.working--
}

// taken has the link of m, if it came on one, know that it waits no more. It is called once.
func (m *Message) taken() {
	if in := m.link(); in != nil {
		in.consumed(m)
	}
}

// empty removes and returns all messages. They count as refused.
func (q *inbox) empty() (all []*Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n > 0 {
		m := q.pop()
		q.gone(m)
		all = append(all, m)
	}
	q.received -= uint64(len(all))
	q.rejected += uint64(len(all))
	return all
}

// abandon removes and returns the messages whose senders await something, but for mail,
// which its mailbox gives back. They count as refused; the others stay.
func (q *inbox) abandon() (asked []*Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for range q.n { // each is looked at once, and the order stays
		m := q.pop()
		if m.asked() == nil || m.isMail() {
			q.push(m)
			continue
		}
		q.gone(m)
		asked = append(asked, m)
	}
	q.received -= uint64(len(asked))
	q.rejected += uint64(len(asked))
	return asked
}

// unhandled returns how many messages wait to be received, or are being handled,
// without mail.
func (q *inbox) unhandled() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n - q.mail + q.working
}

func (q *inbox) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// stats adds what the inbox counts to s.
func (q *inbox) stats(s *Stats) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.Received, s.Rejected, s.Dropped, s.Waiting = q.received, q.rejected, q.dropped, q.n
}

// evict removes and returns the oldest message that is not mail: that is received until
// it is done. What it passes over stays in its order. It needs q.mu, and such a message to
// be there.
func (q *inbox) evict() *Message {
	var ahead *Message // takes the place of the one behind it
	for c, i := q.head, q.first; ; i++ {
		if i == chunkLen {
			c, i = c.next, 0
		}
		m := c.msgs[i]
		c.msgs[i] = ahead
		if !m.isMail() {
			q.pop() // the first place is empty now
			return m
		}
		ahead = m
	}
}

// push and pop need q.mu. pop needs a message to be there.
func (q *inbox) push(m *Message) {
	switch {
	case q.tail == nil:
		q.head = &chunk{}
		q.tail = q.head
	case q.last == chunkLen:
		q.tail.next = &chunk{}
		q.tail, q.last = q.tail.next, 0
	}
	q.tail.msgs[q.last] = m
	q.last++
}

func (q *inbox) pop() *Message {
	m := q.head.msgs[q.first]
	q.head.msgs[q.first] = nil
	q.first++
	switch {
	case q.head == q.tail && q.first == q.last:
		q.first, q.last = 0, 0 // empty: the one chunk is used again
	case q.first == chunkLen:
		q.head, q.first = q.head.next, 0
	}
	return m
}

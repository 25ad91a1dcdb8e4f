package fabric

import (
	"context"
	"runtime"
	"sync"
)

// An inbox is the queue between the dispatcher and those who receive. It holds
// at most maxMsgs messages and maxBytes bytes; what does not fit is refused, at
// once, so the dispatcher never waits. Chunks of the queue are freed as they are
// emptied, so an idle inbox costs next to nothing.
type inbox struct {
	maxMsgs  int
	maxBytes int64
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
	waiting    int   // in take, to be woken
	received   uint64
	rejected   uint64
}

const chunkLen = 256

type chunk struct {
	next *chunk
	msgs [chunkLen]*Message
}

func newInbox(maxMsgs int, maxBytes int64) *inbox {
	return &inbox{maxMsgs: maxMsgs, maxBytes: maxBytes, wake: make(chan struct{}, 1)}
}

// put appends the batch in order and returns the messages that did not fit.
func (q *inbox) put(batch []*Message) (refused []*Message) {
	q.mu.Lock()
	for _, m := range batch {
		size := m.size()
		if m.link == nil { // what comes on a link is bounded by its window
			if q.bound >= q.maxMsgs || q.bytes+size > q.maxBytes {
				refused = append(refused, m)
				continue
			}
			q.bound++
			q.bytes += size
		}
		q.n++
		q.push(m)
	}
	q.received += uint64(len(batch) - len(refused))
	q.rejected += uint64(len(refused))
	wake := q.waiting > 0 && q.n > 0
	q.mu.Unlock()
	if wake {
		q.signal()
	}
	return refused
}

// take removes and returns the oldest message. It waits for one until ctx ends,
// whose cause it returns, or closed does; what the inbox holds then can still be
// taken.
func (q *inbox) take(ctx context.Context, closed <-chan struct{}) (*Message, error) {
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
	q.n--
	if m.link == nil {
		q.bound--
		q.bytes -= m.size()
	}
	wake := q.waiting > 0 && q.n > 0
	q.mu.Unlock()
	if m.link != nil {
		m.link.consumed(m)
		m.link = nil
	}
	if wake {
		q.signal()
	}
	return m, nil
}

// empty removes and returns all messages. They count as refused.
func (q *inbox) empty() (all []*Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for ; q.n > 0; q.n-- {
		all = append(all, q.pop())
	}
	q.bytes = 0
	q.received -= uint64(len(all))
	q.rejected += uint64(len(all))
	return all
}

func (q *inbox) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// counts returns how many messages were taken in and how many refused, ever.
func (q *inbox) counts() (received, rejected uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.received, q.rejected
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

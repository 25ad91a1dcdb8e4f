package fabric

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Flush returns when the server has processed every message that this node sent
// before, and reports the ones it had no receiver for: an error that joins an
// [Undeliverable], wrapping [ErrNoPeer] or [ErrUnreachable], for each message found
// to be so since the last Flush. So do messages whose receiver's inbox was full, with
// [ErrInboxFull], as far as it has said so by then: Flush does not wait for receivers. Of
// more than 1024, the others are counted in it.
//
// Each such message is counted in [Stats] and told to [Config].OnUndeliverable, if
// set, as well, as soon as it is found, whether a Flush waits or not: a caller uses
// the one or the other. OnUndeliverable must not call Flush, which waits for it.
//
// If the connection breaks first, or broke since the last Flush and something of mode Fast
// was sent on it, the error wraps [ErrUnknownOutcome] and [ErrDisconnected]: what was on
// its way may be lost, but for messages of mode Reliable. It is said once.
//
// If ctx ends first, or [DefaultRequestTimeout] has passed for a ctx without a
// deadline, the error wraps the cause, and what was found is kept for the next Flush.
func (n *Node) Flush(ctx context.Context) error { return n.courier.flush(ctx) }

func (c *courier) flush(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("flush: %w", context.Cause(ctx))
	}
	if c.closed.Load() {
		return fmt.Errorf("flush: %w", ErrClosed)
	}
	if err := c.links.settled(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	conn := c.nc.Stats().Reconnects
	w := c.flushes.open(c.ownIDs.Add(1), c.cfg.pid)
	if err := c.batcher.after(c.marks, outgoing{kind: kindFlush, id: w.id, secret: w.secret}, w); err != nil {
		c.flushes.take(w)
		return fmt.Errorf("flush: %w", err)
	}
	a, err := c.await(ctx, &c.flushes, w)
	if err != nil {
		return fmt.Errorf("flush: the server has not processed everything: %w", err)
	}
	if a.err == errBroken {
		if c.nc.IsConnected() && c.nc.Stats().Reconnects == conn {
			return c.flush(ctx) // another connection broke, the bucket's
		}
		c.batcher.unflushed.answered(w.id)
		return errBroken
	}
	if c.batcher.unflushed.answered(w.id) {
		return errors.Join(errBroken, a.err)
	}
	return a.err
}

// silent reports whether nothing comes back to the sender of a message of kind k but bad
// news.
func (k kind) silent() bool { return k == kindSend || k == kindBroadcast || k == kindMulti }

// unflushed knows what a connection that broke may have lost: silent messages whose
// connection is not that of the flush marker behind them. Connections have numbers.
type unflushed struct {
	some atomic.Bool // silent messages were sent since the last marker

	mu    sync.Mutex // guards the fields below
	first uint64     // if some: the connection of the first of them
	marks []flushMark
}

// A flushMark is a marker that was sent and is not answered.
type flushMark struct {
	id, conn uint64
	some     bool   // silent messages were sent before it, and after the one before
	first    uint64 // the connection of the first of them
}

// sent notes the first silent message after a marker.
func (s *unflushed) sent(conn uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.some.Load() {
		s.first = conn
		s.some.Store(true)
	}
}

// marked notes that a marker is sent next. Of too many the oldest is forgotten, and not
// what was sent before it.
func (s *unflushed) marked(id, conn uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks = append(s.marks, flushMark{id, conn, s.some.Load(), s.first})
	s.some.Store(false)
	if len(s.marks) > maxKept {
		if m := s.marks[0]; m.some {
			s.marks[1].some, s.marks[1].first = true, m.first
		}
		s.marks = s.marks[1:]
	}
}

// answered reports whether a connection broke between a silent message and the marker of
// an id, and forgets what was sent before that.
func (s *unflushed) answered(id uint64) (broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.marks, func(m flushMark) bool { return m.id == id })
	for _, m := range s.marks[:i+1] {
		broken = broken || m.some && m.first != s.marks[i].conn
	}
	s.marks = slices.Delete(s.marks, 0, i+1)
	return broken
}

// A clerk finds out why messages had no receiver, one after the other in the order
// of the server's 503s, and reports it. A flush marker takes its place in that
// order: the server answers what it processes before it passes the marker on.
type clerk struct {
	c     *courier
	count atomic.Uint64 // of undeliverable messages
	wake  chan struct{} // capacity 1: a token means the queue is not empty

	mu    sync.Mutex // guards the fields below
	queue []entry
	more  uint64 // undeliverable messages that found the queue full

	// Of run alone: what the next Flush reports.
	kept     []error
	uncounts [len(categories)]uint64 // of messages not in kept
}

// categories are why messages are undeliverable, the likeliest of the unknown last. What
// may have arrived is first, as its error may say why it was given up.
var categories = [...]error{ErrUnknownOutcome, ErrNoPeer, ErrInboxFull, ErrUnreachable}

// An entry is an undeliverable message or a flush marker that came back.
type entry struct {
	to    PID
	id    uint64
	err   error // nil: to be found out
	flush *tag
}

const (
	// maxQueue bounds the messages that wait for their reason while the bucket is
	// read, or OnUndeliverable does not return. Of more, it is only counted that
	// they were unreachable.
	maxQueue = 65_536
	// maxKept bounds the errors that one Flush joins; the others are counted in it.
	maxKept = 1024
)

func (k *clerk) init(c *courier) { k.c, k.wake = c, make(chan struct{}, 1) }

// add hands e over. It never waits.
func (k *clerk) add(e entry) {
	if e.flush == nil {
		k.count.Add(1)
	}
	k.mu.Lock()
	if e.flush == nil && len(k.queue) >= maxQueue {
		k.more++
		k.mu.Unlock()
		return
	}
	k.queue = append(k.queue, e)
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *clerk) run() {
	for {
		select {
		case <-k.wake:
		case <-k.c.done:
			return
		}
		k.mu.Lock()
		batch, more := k.queue, k.more
		k.queue, k.more = nil, 0
		k.mu.Unlock()
		k.uncounts[len(categories)-1] += more
		// One read of a claim serves all messages to it that had piled up.
		reasons := make(map[PID]error)
		for _, e := range batch {
			if k.c.closed.Load() {
				return
			}
			if e.flush != nil {
				k.report(*e.flush)
				continue
			}
			if e.err == nil {
				e.err = reasons[e.to]
			}
			if e.err == nil {
				e.err = k.c.verdict(life{k.c}, e.to)
				reasons[e.to] = e.err
			}
			k.keep(Undeliverable{To: e.to, ID: e.id, Err: e.err})
		}
	}
}

// keep remembers u for the next Flush and tells the user of it.
func (k *clerk) keep(u Undeliverable) {
	if len(k.kept) < maxKept {
		k.kept = append(k.kept, u)
	} else {
		i := 0
		for i < len(categories)-1 && !errors.Is(u.Err, categories[i]) {
			i++
		}
		k.uncounts[i]++
	}
	k.c.log.Debug("message undeliverable", "pid", k.c.cfg.pid, "to", u.To, "id", u.ID, "err", u.Err)
	if f := k.c.cfg.onUndeliverable; f != nil {
		f(u)
	}
}

// report gives what was found to the Flush whose marker this is. If that does not
// wait any more, it is kept for the next.
func (k *clerk) report(marker tag) {
	w := k.c.flushes.match(marker, k.c.cfg.pid)
	if w == nil {
		return
	}
	for i, category := range categories {
		if n := k.uncounts[i]; n > 0 {
			k.kept = append(k.kept, fmt.Errorf("%d more messages: %w", n, category))
		}
	}
	w.answer <- answer{err: errors.Join(k.kept...)}
	k.kept, k.uncounts = nil, [len(categories)]uint64{}
}

// verdict says why the server knows no receiver for a PID.
func (c *courier) verdict(ctx context.Context, to PID) error {
	if c.cfg.known(to) {
		if c.cfg.unheard != nil {
			c.cfg.unheard(to)
		}
		return ErrUnreachable
	}
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	if c.cfg.gone(ctx, to) {
		return ErrNoPeer
	}
	return ErrUnreachable
}

// goneTimeout bounds one read of a PID's claim, made to tell ErrNoPeer from
// ErrUnreachable.
const goneTimeout = 2 * time.Second

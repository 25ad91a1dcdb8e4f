package lease

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// A Hold is one stretch of time in which a session is held. It ends once: at the
// deadline of the last acknowledged renewal, when the incarnation is known to be
// over, or when the session leaves. What is granted under it ends with it.
type Hold struct {
	Incarnation uint64

	base  context.Context // what the contexts derive from; never ends
	clock Clock
	lease time.Duration
	sent  atomic.Pointer[Instant] // before sending the last acknowledged renewal
	ended atomic.Bool

	mu    sync.Mutex // guards the fields below
	cause error
	fuses map[time.Duration]*fuse // by grace
}

// A fuse ends a context a given grace before the hold's own deadline.
type fuse struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func newHold(ctx context.Context, incarnation uint64, lease time.Duration, clock Clock, sent Instant) *Hold {
	h := &Hold{
		Incarnation: incarnation, base: context.WithoutCancel(ctx), clock: clock, lease: lease,
		fuses: map[time.Duration]*fuse{},
	}
	h.sent.Store(&sent)
	return h
}

// Valid reports whether the hold may still be acted on, now and by the clock, and
// will be for another grace. A thread that is stopped between this check and its
// effect is not protected by it: fence the effect.
func (h *Hold) Valid(grace time.Duration) bool {
	return !h.ended.Load() && h.left(grace) > 0
}

func (h *Hold) left(grace time.Duration) time.Duration {
	return trust(h.lease) - grace - h.clock.Since(*h.sent.Load())
}

// Context returns a context that ends grace before the hold does, with the cause.
func (h *Hold) Context(grace time.Duration) context.Context {
	h.mu.Lock()
	defer h.mu.Unlock()
	f, ok := h.fuses[grace]
	if !ok {
		f = new(fuse)
		f.ctx, f.cancel = context.WithCancelCause(h.base)
		h.fuses[grace] = f
		if h.ended.Load() {
			f.cancel(h.cause)
			return f.ctx
		}
		f.timer = time.AfterFunc(h.left(grace), func() { h.burn(f, grace) })
	}
	return f.ctx
}

// burn ends f, or waits for the deadline that a renewal has set since.
func (h *Hold) burn(f *fuse, grace time.Duration) {
	if left := h.left(grace); left > 0 && !h.ended.Load() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if !h.ended.Load() {
			f.timer.Reset(left)
		}
		return
	}
	if grace == 0 {
		h.end(ErrLost)
		return
	}
	h.mu.Lock()
	delete(h.fuses, grace) // the hold may yet be renewed: what is granted then has its own
	h.mu.Unlock()
	f.cancel(ErrLost)
}

// renew takes an acknowledgement of a renewal sent at the time given. It reports
// false if the hold had ended before: a new one is needed.
func (h *Hold) renew(sent Instant) bool {
	if !h.Valid(0) {
		h.end(ErrLost)
		return false
	}
	h.sent.Store(&sent)
	return true
}

// end makes every validity check false for good, then ends the contexts.
func (h *Hold) end(cause error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended.Swap(true) {
		return
	}
	h.cause = cause
	for _, f := range h.fuses {
		if f.timer != nil {
			f.timer.Stop()
		}
		f.cancel(cause)
	}
}

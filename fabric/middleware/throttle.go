package middleware

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

// Throttle bounds how many messages pass in a second. Those above wait for their
// turn, or with Reject are refused with [ErrThrottled]. A handler that waits keeps
// its worker from other messages; they queue in the node's inbox.
type Throttle struct {
	// Rate is in messages a second, over time. Zero or less means no bound.
	Rate float64
	// Burst is how many may pass at once after a pause. Default 1.
	Burst int
	// PerPeer bounds each sender, or each receiver, by itself.
	PerPeer bool
	// Reject refuses messages instead of having them wait.
	Reject bool
}

// Handler bounds what reaches next.
func (t Throttle) Handler(next Handler) Handler {
	l := newLimiter(t)
	return func(ctx context.Context, m *fabric.Message) ([]byte, error) {
		if err := l.pass(ctx, m.From); err != nil {
			return nil, err
		}
		return next(ctx, m)
	}
}

// Sender bounds what reaches next.
func (t Throttle) Sender(next Sender) Sender {
	l := newLimiter(t)
	return func(ctx context.Context, m *fabric.Message, request bool) (*fabric.Message, error) {
		if err := l.pass(ctx, m.To); err != nil {
			return nil, fmt.Errorf("send to %s: %w", m.To, err)
		}
		return next(ctx, m, request)
	}
}

// maxPeers is how many peers a limiter knows before it forgets those that could send
// a whole burst: it learns nothing from them. The others it keeps.
const maxPeers = 4096

// A limiter has, for each peer, the time at which all that it was let through would
// have come at exactly the rate. A message may pass a burst earlier than that.
type limiter struct {
	cfg   Throttle
	every time.Duration // 0: no bound
	ahead time.Duration // of a whole burst

	mu  sync.Mutex // guards due
	due map[fabric.PID]time.Time
}

func newLimiter(t Throttle) *limiter {
	l := &limiter{cfg: t, due: make(map[fabric.PID]time.Time)}
	if t.Rate > 0 {
		l.every = max(time.Nanosecond, time.Duration(float64(time.Second)/t.Rate))
		l.ahead = time.Duration(max(1, t.Burst)) * l.every
	}
	return l
}

// pass returns when a message of, or to, the peer may pass.
func (l *limiter) pass(ctx context.Context, peer fabric.PID) error {
	if l.every == 0 {
		return nil
	}
	if !l.cfg.PerPeer {
		peer = ""
	}
	wait := l.reserve(time.Now(), peer)
	switch {
	case wait <= 0:
		return nil
	case l.cfg.Reject:
		l.giveBack(peer)
		return encode(ErrThrottled, ErrThrottled)
	}
	if err := pause(ctx, wait); err != nil {
		l.giveBack(peer)
		return err
	}
	return nil
}

func (l *limiter) reserve(now time.Time, peer fabric.PID) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.due[peer]; !known && len(l.due) >= maxPeers {
		for p, due := range l.due {
			if !due.After(now) {
				delete(l.due, p)
			}
		}
	}
	due := l.due[peer]
	if due.Before(now) {
		due = now
	}
	due = due.Add(l.every)
	l.due[peer] = due
	return due.Add(-l.ahead).Sub(now)
}

func (l *limiter) giveBack(peer fabric.PID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.due[peer] = l.due[peer].Add(-l.every)
}

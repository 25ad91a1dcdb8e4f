package balance

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// stays numbers the memberships of this process. Within one incarnation a wish of a lower
// number that lands late is known to be old: nothing else orders the writes of one process
// that were sent over two servers.
var stays atomic.Uint64

// A wish is what a member asks of its group, as the bucket holds it.
type wish struct {
	Key string `json:"key"`
	PID string `json:"pid"`
	Inc uint64 `json:"inc"`
	roster.Ask
	// Acked: it has given up all that views up to this epoch took from it.
	Acked    uint64 `json:"acked,omitempty"`
	RejoinMS int64  `json:"rejoin_ms,omitempty"`
	Gone     bool   `json:"gone,omitempty"`
	// Since is when its node joined the fabric: the same in all incarnations of one node.
	Since time.Time `json:"since,omitzero"`
}

func groupKey(group, pid string) string { return lease.KeyWish(group, pid) }

// keepGone is the server's TTL of a wish that is over.
const keepGone = time.Minute

func (m *member) setWorkers(ctx context.Context, n int) error {
	return m.wish(ctx, func(a *roster.Ask) { a.Workers = n })
}

func (m *member) setReady(ctx context.Context, ready bool) error {
	return m.wish(ctx, func(a *roster.Ask) { a.Idle = !ready })
}

// wish writes a changed wish.
func (m *member) wish(ctx context.Context, change func(*roster.Ask)) error {
	for {
		hold, err := m.host.Session.Held(ctx)
		if err != nil {
			return err
		}
		m.mu.Lock()
		change(&m.ask)
		m.mu.Unlock()
		err = m.write(ctx, hold.Incarnation, false)
		if err == nil || !errors.Is(err, kv.ErrRefused) {
			return err
		}
		if err := kv.Pause(ctx, 0); err != nil {
			return err
		}
	}
}

// write stores the wish for one incarnation, with what is wanted when its turn comes.
func (m *member) write(ctx context.Context, inc uint64, gone bool) error {
	select {
	case m.writing <- struct{}{}:
		defer func() { <-m.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	m.mu.Lock()
	m.inc = max(m.inc, inc) // from now on it may be stored, whether we hear of it or not
	if m.since.IsZero() {
		v, _ := m.host.Members.View()
		if self, ok := v.Find(string(m.node.PID())); ok && self.Inc == inc {
			m.since = self.Since
		}
	}
	w := wish{
		Key: groupKey(m.cfg.Group, string(m.node.PID())), PID: string(m.node.PID()), Inc: inc,
		Ask: m.ask, Acked: m.acked, RejoinMS: m.cfg.Rejoin.Milliseconds(), Gone: gone,
		Since: m.since,
	}
	m.mu.Unlock()
	var ttl time.Duration
	if gone {
		ttl = keepGone + m.cfg.Rejoin
	}
	value, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return m.host.Session.Want(ctx, w.Key, inc, value, ttl)
}

// repeat has the wish written once more. Views are handed over meanwhile: what they say
// counts, whatever becomes of the wish. It is the feeder's, which whoever waits for wg
// waits for, too.
func (m *member) repeat(hold *lease.Hold) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.again = hold
	if m.repeating {
		return
	}
	m.repeating = true
	m.wg.Go(func() {
		for {
			m.mu.Lock()
			hold, acked := m.again, m.acked
			m.again, m.repeating = nil, hold != nil
			m.mu.Unlock()
			if hold == nil {
				return
			}
			if m.rewrite(hold) {
				m.strict.wrote(hold.Incarnation, acked)
			}
		}
	})
}

// rewrite writes the wish once more, and gives up when the hold ends: the share must
// end with it, whatever becomes of the wish.
func (m *member) rewrite(hold *lease.Hold) bool {
	ctx, cancel := context.WithCancel(m.stop)
	defer cancel()
	defer context.AfterFunc(hold.Context(m.cfg.Grace), cancel)()
	err := m.write(ctx, hold.Incarnation, false)
	if err != nil {
		m.cfg.Logger.Debug("wish not repeated", "group", m.cfg.Group, "err", err)
	}
	return err == nil
}

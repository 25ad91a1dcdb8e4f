package balance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// An eviction is what a person asks of a group: that a member has nothing, in the
// incarnation that it has or a later one of the same node. Incarnation 0 takes it back.
type eviction struct {
	Key   string    `json:"key"`
	PID   string    `json:"pid"`
	Inc   uint64    `json:"inc"`
	Since time.Time `json:"since"`
	Nonce string    `json:"nonce"`
	// Node is when the member's node joined the fabric; zero if its wish does not say so.
	Node time.Time `json:"node,omitzero"`
}

func evictionKey(group, pid string) string { return "x." + group + "." + pid }

// keepEviction is the server's TTL of an eviction. The coordinators that see the member
// evicted in the group's view go by that for longer.
const keepEviction = 7 * 24 * time.Hour

func parseEviction(e kv.Entry) (x eviction, ok bool) {
	err := json.Unmarshal(e.Value, &x)
	return x, err == nil && x.Key == e.Key && e.Key != "" && x.PID != ""
}

// evict says of m, which has the wish w, whether it is to have nothing: the newest
// eviction of the PID says so, or there is no record of one any more, and it is evicted in
// the view. Who is has its node's time in the view, for those who have no record of it.
func (c *counter) evict(m *roster.Member, w wish, view past) {
	x, known := c.evicted[w.PID]
	if old := view.members[w.PID]; !known && old != nil && old.Evicted {
		x = eviction{Inc: old.Inc, Node: old.Since}
	}
	m.Evicted = x.Inc != 0 && (x.Inc == w.Inc || !w.Since.IsZero() && x.Node.Equal(w.Since))
	m.Since = time.Time{}
	if m.Evicted {
		m.Since = w.Since
	}
}

// Evict takes all indices and partitions of the group from the member pid, whether it
// is well or not, until it is started anew or Restore is called: a member that is up
// but does its work badly. One that loses its lease and rejoins is not started anew. It
// stays in the group. It is told like of any other loss, and in a strict mode nobody has
// what it had before it has stopped or its lease has run out. Evict returns when the
// group's view shows it with nothing; progress, if not nil, is called with what is left,
// whenever that has changed. node need not be in the group, and may be passive.
// [ErrNoMember] if pid is not in the group.
func Evict(ctx context.Context, node *fabric.Node, group string, pid fabric.PID, progress func(left int)) error {
	return evict(ctx, node, group, pid, true, progress)
}

// Restore takes an Evict back. It returns when the group's view shows that.
func Restore(ctx context.Context, node *fabric.Node, group string, pid fabric.PID) error {
	return evict(ctx, node, group, pid, false, nil)
}

func evict(ctx context.Context, node *fabric.Node, group string, pid fabric.PID, out bool, progress func(left int)) error {
	if err := checkGroup(group); err != nil {
		return err
	}
	host := node.Host()
	r, err := roster.Start(ctx, roster.Config{Name: "g." + group, Session: host.Session, Signals: host.Signals, Logger: host.Logger})
	if err != nil {
		return fmt.Errorf("balance: evict %s: %w", pid, err)
	}
	defer r.Close()
	if err := r.Sync(ctx); err != nil {
		return fmt.Errorf("balance: evict %s: %w", pid, err)
	}
	v, _ := r.View()
	m, ok := v.Find(string(pid))
	if !ok {
		return fmt.Errorf("balance: evict %s: %w", pid, ErrNoMember)
	}
	x := eviction{Key: evictionKey(group, string(pid)), PID: string(pid), Since: time.Now().UTC(), Nonce: nuid.Next()}
	if out {
		e, err := host.Session.Bucket().Get(ctx, groupKey(group, x.PID))
		if err != nil {
			return fmt.Errorf("balance: evict %s: %w", pid, err)
		}
		x.Inc = m.Inc
		if w, ok := parseWish(e); ok && w.Inc == m.Inc {
			x.Node = w.Since
		}
	}
	if err := x.write(ctx, host.Session.Bucket()); err != nil {
		return fmt.Errorf("balance: evict %s: %w", pid, err)
	}
	last := -1
	err = r.Await(ctx, func(v *roster.View) (bool, <-chan struct{}, error) {
		m, ok := v.Find(string(pid))
		left := 0
		if ok {
			left = unitsIn(v, m)
		}
		if left != last && progress != nil {
			progress(left)
		}
		last = left
		return !ok || m.Evicted == out && (left == 0 || !out), nil, nil
	})
	if err != nil {
		return fmt.Errorf("balance: evict %s: %w", pid, err)
	}
	return nil
}

// write replaces whatever eviction there is.
func (x eviction) write(ctx context.Context, b *kv.Bucket) error {
	value, err := json.Marshal(x)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		e, err := b.Get(ctx, x.Key)
		if err == nil {
			if _, err = b.Settle(ctx, x.Key, e.Rev, value, keepEviction); err == nil || !errors.Is(err, kv.ErrRefused) {
				return err
			}
		}
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return fmt.Errorf("%w: %w", waitErr, err)
		}
	}
}

// unitsIn returns how much of the group's work a member has in a view, or has still to
// give up.
func unitsIn(v *roster.View, m *roster.Member) int {
	k := parseKind(v.Kind)
	if k.granted() || k.parts {
		return slots(m.Slots).and(slots(m.Going)).count()
	}
	return wantOf(m).granted()
}

package roster

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// Sync reads the view, for a node that only follows, and leaves out whoever is not
// here any more according to the other records: there may be no coordinator that
// would. Such a node does so again when it has not heard of one for long.
func (r *Roster) Sync(ctx context.Context) error {
	for n := 0; ; n++ {
		err := r.sync(ctx)
		if _, foreign := errors.AsType[*lease.ForeignError](err); err == nil || foreign {
			return err
		}
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return fmt.Errorf("%w: %w", waitErr, err)
		}
	}
}

func (r *Roster) sync(ctx context.Context) error {
	if err := r.read(ctx, &View{}); err != nil {
		return err
	}
	v := r.view.Get()
	if len(v.Members) == 0 {
		return nil
	}
	now, err := r.b.Clock(ctx)
	if err != nil {
		return err
	}
	keeper, err := r.cfg.Session.Holder(ctx, lease.KeyRoster(r.cfg.Name))
	if _, foreign := errors.AsType[*lease.ForeignError](err); !foreign && (err != nil || keeper.PID != "") {
		return err // there is a coordinator that keeps the view up to date
	}
	pids, err := r.b.List(ctx, lease.PIDs)
	if err != nil {
		return err
	}
	sessions, err := r.b.List(ctx, lease.Sessions)
	if err != nil {
		return err
	}
	signs := map[incarnation]int{} // a claim, and a session that is not too old
	for _, e := range pids {
		if c, err := lease.ParsePID(e); err == nil && c.Held() {
			signs[incarnation{c.PID, e.Rev}]++
		}
	}
	for _, e := range sessions {
		if s, err := lease.ParseSession(e); err == nil && lease.Fresh(e, s.Inc, now) {
			signs[incarnation{s.PID, s.Inc}]++
		}
	}
	living := *v
	living.words = 0
	living.Members = slices.DeleteFunc(slices.Clone(v.Members), func(m *Member) bool {
		return signs[incarnation{m.PID, m.Inc}] < 2
	})
	r.view.Update(func(now *View) (*View, bool) {
		if now != v || len(living.Members) == len(v.Members) {
			return now, false
		}
		r.mu.Lock()
		r.sifted = true
		r.mu.Unlock()
		return &living, true
	})
	return nil
}

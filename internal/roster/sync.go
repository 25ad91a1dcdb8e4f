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

// sync shows what is left of the view in the bucket. It reads all of it first, so that
// nobody sees members come and go that are over.
func (r *Roster) sync(ctx context.Context) error {
	for again := true; again; {
		was := r.view.Get()
		v, err := r.stored(ctx)
		if err != nil {
			return err
		}
		if v.before(was) || !was.before(v) && !was.sifted {
			v = was // which has the suspects as well
		}
		left, err := r.sift(ctx, v)
		if err != nil {
			return err
		}
		r.view.Update(func(now *View) (*View, bool) {
			newer := now.before(v)
			again = !newer && now != was && !v.before(now) // another has read the same
			return left, newer || now == was && !now.shows(left)
		})
	}
	return nil
}

// shows reports whether o, which is of the same epoch, has the same members.
func (v *View) shows(o *View) bool {
	return v.sifted == o.sifted && slices.EqualFunc(v.Members, o.Members, (*Member).equal)
}

// sift returns v without those who are not here any more, or as it is if there is a
// coordinator that keeps it up to date.
func (r *Roster) sift(ctx context.Context, v *View) (*View, error) {
	if len(v.Members) == 0 {
		return v, nil
	}
	now, err := r.b.Clock(ctx)
	if err != nil {
		return nil, err
	}
	keeper, err := r.cfg.Session.Holder(ctx, lease.KeyRoster(r.cfg.Name))
	if _, foreign := errors.AsType[*lease.ForeignError](err); !foreign && (err != nil || keeper.PID != "") {
		return v, err
	}
	pids, err := r.b.List(ctx, lease.PIDs)
	if err != nil {
		return nil, err
	}
	sessions, err := r.b.List(ctx, lease.Sessions)
	if err != nil {
		return nil, err
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
	living.Members = slices.DeleteFunc(slices.Clone(v.Members), func(m *Member) bool {
		return signs[incarnation{m.PID, m.Inc}] < 2
	})
	if len(living.Members) == len(v.Members) {
		return v, nil
	}
	living.words, living.sifted = 0, true
	return &living, nil
}

package balance

import (
	"cmp"
	"context"
	"fmt"
	"sync"
)

// Static returns a group of fixed shape, without a server: this member has the
// indices first to first+workers-1 out of 0 to total-1, and whoever configures the
// members sees to it that their ranges are disjoint. Everything else is as after
// [Join]: OnChange is called once before Static returns and with First -1 when the
// member leaves, and Leave must be called. workers 0 means cfg.Workers, which must
// not contradict it; if both are 0, [DefaultWorkers]. total must be positive and at
// most [MaxTotal], and the range must lie inside it. If cfg.Passive is set the member
// has no index, sees the total, and first is ignored. cfg.Group and cfg.Settle mean
// nothing. What does not fit is a [*ConfigError]. ctx gives its values to the
// group's Context; nothing here waits for it.
//
// The epoch is 1, and grows with each SetWorkers, which takes effect at once and
// fails if the range would leave the total. Leaving does not change Total, because
// the other members go by it.
func Static(ctx context.Context, first, workers, total int, cfg Config) (*Group, error) {
	if cfg.Workers != 0 && workers != 0 && cfg.Workers != workers {
		return nil, &ConfigError{"Workers", fmt.Sprintf("%d in Config, %d as argument", cfg.Workers, workers)}
	}
	cfg.Workers = cmp.Or(workers, cfg.Workers)
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	if total < 1 || total > MaxTotal {
		return nil, &ConfigError{"total", fmt.Sprintf("%d is outside 1 to %d", total, MaxTotal)}
	}
	if cfg.kind() != (kind{}) || cfg.NotReady {
		return nil, &ConfigError{"Layout", "a static group has contiguous indices, and nothing else"}
	}
	s := &static{first: first, total: total}
	if cfg.Passive {
		s.first, cfg.Workers = -1, 0
	} else if err := s.check(cfg.Workers); err != nil {
		return nil, err
	}
	g := newGroup(ctx, cfg, s)
	g.fixed = true
	s.g = g
	s.grant(cfg.Workers)
	if err := g.start(ctx); err != nil {
		return nil, err
	}
	return g, nil
}

// A static is the source of a group that nobody else is in.
type static struct {
	g            *Group
	first, total int

	mu    sync.Mutex // held over a grant, so that epochs arrive in order; guards epoch
	epoch uint64
}

// check reports whether n workers from first on lie inside the total.
func (s *static) check(n int) error {
	switch {
	case s.first < 0 || s.first >= s.total:
		return &ConfigError{"first", fmt.Sprintf("%d is outside 0 to %d, for a total of %d", s.first, s.total-1, s.total)}
	case n > s.total-s.first:
		return &ConfigError{"Workers", fmt.Sprintf("%d from index %d on exceed the total of %d", n, s.first, s.total)}
	}
	return nil
}

// grant makes n workers the group's next view.
func (s *static) grant(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	placed := []Placed{{First: s.first, Workers: n, Self: true}}
	s.g.deliver(shareIn(placed, s.total, s.epoch), placed)
}

func (s *static) setWorkers(_ context.Context, n int) error {
	if err := s.check(n); err != nil {
		return err
	}
	s.grant(n)
	return nil
}

// setReady: a fixed shape has no place for those who are not ready.
func (s *static) setReady(_ context.Context, ready bool) error {
	if !ready {
		return &ConfigError{"NotReady", "the place of a static member is fixed"}
	}
	return nil
}

func (s *static) leave(context.Context) error { return nil }

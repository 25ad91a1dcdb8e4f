package balance

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
)

// A hub places members and delivers the views, as the coordinator of a roster does,
// but at once and only when told to.
type hub struct {
	mu    sync.Mutex // guards the fields below, and a seat's want
	epoch uint64
	seats map[string]*seat
	// views are all that were ever delivered, by epoch.
	views map[uint64][]Placed
}

// A seat is the source of one member's group.
type seat struct {
	hub       *hub
	g         *Group
	want      want
	leaves    int     // how often leave was called
	leaveErrs []error // what its first calls return
}

func newHub() *hub {
	return &hub{seats: map[string]*seat{}, views: map[uint64][]Placed{}}
}

// seat returns a member that stands in no view yet.
func (h *hub) seat(t *testing.T, pid string, cfg Config) *seat {
	t.Helper()
	cfg, err := cfg.complete()
	if err != nil {
		t.Fatal(err)
	}
	s := &seat{hub: h, want: want{pid, cfg.Workers, cfg.Passive}}
	s.g = newGroup(t.Context(), cfg, s)
	return s
}

// join returns a member that has its first share, like Join.
func (h *hub) join(t *testing.T, pid string, cfg Config) *seat {
	t.Helper()
	s := h.seat(t, pid, cfg)
	h.add(s)
	h.publish()
	if err := s.g.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (h *hub) add(s *seat) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seats[s.want.pid] = s
}

func (h *hub) remove(s *seat) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.seats, s.want.pid)
}

// publish writes the next view and delivers it to those who stand in it.
func (h *hub) publish() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.epoch++
	var wants []want
	for _, s := range h.seats {
		wants = append(wants, s.want)
	}
	for s := range maps.Values(h.seats) {
		placed, total := assign(s.want.pid, wants)
		h.views[h.epoch] = placed
		s.g.deliver(shareIn(placed, total, h.epoch), placed)
	}
}

func (s *seat) setWorkers(_ context.Context, n int) error {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.want.workers = n
	return nil
}

func (s *seat) setReady(context.Context, bool) error { return nil }

func (s *seat) leave(ctx context.Context) error {
	s.leaves++
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(s.leaveErrs) > 0 {
		err := s.leaveErrs[0]
		s.leaveErrs = s.leaveErrs[1:]
		return err
	}
	s.hub.remove(s)
	s.hub.publish()
	return nil
}

func leave(t *testing.T, seats ...*seat) {
	t.Helper()
	for _, s := range seats {
		if err := s.g.Leave(t.Context()); err != nil {
			t.Errorf("%s: Leave: %v", s.want.pid, err)
		}
	}
}

// checkCalls reports what OnChange must never be given: the same share twice in a
// row, an epoch that goes back, a share that is not its view's.
func (h *hub) checkCalls(t *testing.T, pid string, calls []Share) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, s := range calls {
		if i > 0 && (s.same(calls[i-1]) || s.Epoch < calls[i-1].Epoch) {
			t.Errorf("%s: %v after %v", pid, s, calls[i-1])
		}
		if s.First >= 0 && !slices.ContainsFunc(h.views[s.Epoch], func(p Placed) bool {
			return string(p.PID) == pid && p.First == s.First && p.Workers == s.Workers
		}) {
			t.Errorf("%s: %v is not in the view %v", pid, s, h.views[s.Epoch])
		}
	}
}

// In every view the ranges of all members tile 0 to total-1.
func TestViewsTile(t *testing.T) {
	h := newHub()
	calls := map[string]*[]Share{}
	var seats []*seat
	for i := range 12 {
		pid := fmt.Sprint(i)
		calls[pid] = new([]Share)
		seats = append(seats, h.join(t, pid, Config{Workers: i, Passive: i%5 == 4, OnChange: record(calls[pid])}))
		next := 0
		for _, s := range seats {
			share := s.g.Share()
			if s.want.passive {
				continue
			}
			if share.First != next || share.Epoch != uint64(i+1) {
				t.Errorf("%s has %v, want First %d", s.want.pid, share, next)
			}
			next += share.Workers
		}
		if got := seats[0].g.Share().Total; got != next {
			t.Errorf("Total = %d, the ranges end at %d", got, next)
		}
	}
	leave(t, seats...)
	for pid, c := range calls {
		h.checkCalls(t, pid, *c)
	}
}

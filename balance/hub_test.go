package balance

import (
	"context"
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

package roster_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// crowd takes n parts that all know each other.
func crowd(t *testing.T, s *natstest.Server, h *hall, n int, tune ...func(*part)) (parts []*part, list []*roster.Member) {
	for i := range n {
		p := take(t, s, h, fmt.Sprint("n", i), true, tune...)
		st, _ := p.session.State()
		list = append(list, &roster.Member{PID: fmt.Sprint("n", i), Inc: st.Hold.Incarnation})
		parts = append(parts, p)
	}
	for _, p := range parts {
		p.wants.Store(list)
	}
	return parts, list
}

// standing counts who waits for the claim.
func standing(parts []*part) (n int) {
	for _, p := range parts {
		if p.StandsBy() {
			n++
		}
	}
	return n
}

// After an outage in which nobody heard a coordinator, those who are not among its
// standbys stop waiting for its claim again.
func TestStandbysGoBackAfterAnOutage(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &hall{ears: map[int]func(string, []byte){}}
		parts, _ := crowd(t, s, h, 40)
		standing := func() int { return standing(parts) }
		time.Sleep(20 * time.Second)
		before := standing()
		h.hush(true)
		time.Sleep(12 * time.Second)
		during := standing()
		h.hush(false)
		time.Sleep(20 * time.Second)
		if after := standing(); before > 10 || during < 30 || after > 10 {
			t.Errorf("%d wait for the claim, %d while no coordinator is heard, %d afterwards", before, during, after)
		}
	})
}

// A coordinator with a long lease that crashes is replaced by one of its standbys, and the
// others do not come to watch.
func TestOthersLeaveACrashToTheStandbys(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &hall{ears: map[int]func(string, []byte){}}
		parts, list := crowd(t, s, h, 44, func(p *part) { p.lease = 20 * time.Second })
		time.Sleep(20 * time.Second)
		v := parts[0].until(t, len(list))
		crashed := slices.IndexFunc(list, func(m *roster.Member) bool { return m.PID == v.PID })
		h.mu.Lock()
		h.dead = v.PID
		h.mu.Unlock()
		parts[crashed].link.Cut()
		parts = slices.Delete(parts, crashed, crashed+1)
		for _, p := range parts {
			p.wants.Store(slices.Delete(slices.Clone(list), crashed, crashed+1))
		}
		most, began := 0, time.Now()
		for time.Since(began) < time.Minute {
			if now, _ := parts[0].View(); now.Token > v.Token {
				break
			}
			most = max(most, standing(parts))
			time.Sleep(50 * time.Millisecond)
		}
		if took := time.Since(began); took > 25*time.Second {
			t.Errorf("another coordinates after %v, want a lease", took)
		}
		if most < 8 || most > 10 {
			t.Errorf("up to %d wait for the claim until another coordinates, want the standbys", most)
		}
	})
}

// A coordinator whose write is not acknowledged is heard all the time.
func TestCoordinatorIsHeardWhileItWrites(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h, d := &hall{ears: map[int]func(string, []byte){}}, newDesk(t, s)
		a, b := take(t, s, h, "a", true, atDesk), take(t, s, h, "b", false)
		a.wants.Store(named("a"))
		b.until(t, 1)
		heard := make(chan struct{}, 100) // more than are said
		stop, err := (&seat{h: h, pid: "c"}).OnSignal("view-x", func(string, []byte) { heard <- struct{}{} })
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		d.writeless.Store(true)
		a.wants.Store(named("a", "b"))
		time.Sleep(31 * time.Second)
		if n := len(heard); n < 6 {
			t.Errorf("heard %d times in 31 s, want each 5 s", n)
		}
		d.writeless.Store(false)
		b.until(t, 2)
	})
}

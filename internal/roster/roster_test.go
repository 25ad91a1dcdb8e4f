package roster_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/latest"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

const ttl = 5 * time.Second

// A hall carries signals to everyone but the one who sends, if it is not quiet.
type hall struct {
	mu    sync.Mutex // guards the fields below
	ears  map[int]func(from string, data []byte)
	next  int
	quiet bool
	dead  string // PID that is not heard any more
}

func (h *hall) hush(quiet bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.quiet = quiet
}

// A seat is one node's way into the hall.
type seat struct {
	h   *hall
	id  int
	pid string
}

func (s *seat) Signal(_ string, data []byte) error {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	for id, f := range s.h.ears {
		if id != s.id && !s.h.quiet && s.pid != s.h.dead {
			go f(s.pid, data)
		}
	}
	return nil
}

func (s *seat) OnSignal(_ string, f func(from string, data []byte)) (func(), error) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.h.next++
	s.id = s.h.next
	s.h.ears[s.id] = f
	return func() {
		s.h.mu.Lock()
		defer s.h.mu.Unlock()
		delete(s.h.ears, s.id)
	}, nil
}

// A part is one node's part in the roster x.
type part struct {
	*roster.Roster
	session *lease.Session
	nc      *nats.Conn
	link    *natstest.Link
	wants   *latest.Value[[]*roster.Member] // what its census counts
	sign    roster.Sign                     // by which all departed
	domain  string                          // of its bucket
	lease   time.Duration
	plan    func(before, next *roster.View) (soon bool)
}

func take(t *testing.T, s *natstest.Server, h *hall, pid string, coordinates bool, tune ...func(*part)) *part {
	t.Helper()
	p := &part{lease: ttl, link: s.Link(), wants: new(latest.Value[[]*roster.Member])}
	for _, f := range tune {
		f(p)
	}
	nc, err := nats.Connect("", append(natstest.FastOptions(), nats.InProcessServer(p.link), nats.ReconnectBufSize(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	p.nc = nc
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	logger := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", pid)
	b := kv.New(nc, kv.Config{
		Name: "fab_test_production", Feed: "fab.test.production.kv", Replicas: 1, Lease: p.lease, Domain: p.domain,
		Alone: func(context.Context) (bool, error) { return true, nil }, Logger: logger,
	})
	if err := b.Open(ctx); err != nil {
		t.Fatal(err)
	}
	if p.session, err = lease.Start(ctx, b, lease.Config{PID: pid, Lease: p.lease, Logger: logger}); err != nil {
		t.Fatal(err)
	}
	cfg := roster.Config{
		Name: "x", Session: p.session, Signals: &seat{h: h, pid: pid},
		Quiet: 50 * time.Millisecond, Ceiling: time.Second, Logger: logger,
	}
	if coordinates {
		cfg.Census = func(ctx context.Context, _ *roster.View, report func(roster.Count)) error {
			for {
				list, changed := p.wants.Load()
				if list != nil {
					report(roster.Count{Members: list, Plan: p.plan, Ended: func(m *roster.Member) roster.Departure {
						return roster.Departure{PID: m.PID, Inc: m.Inc, Failed: true, By: p.sign}
					}})
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		}
	}
	if p.Roster, err = roster.Start(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		p.session.Leave(ctx) // fails over a link that is cut
		p.Close()
	})
	return p
}

func named(pids ...string) (list []*roster.Member) {
	for i, p := range pids {
		list = append(list, &roster.Member{PID: p, Inc: uint64(i + 1)})
	}
	return list
}

// until waits until p has a view with n members.
func (p *part) until(t *testing.T, n int) *roster.View {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		v, changed := p.View()
		if len(v.Members) == n {
			return v
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("view %+v, want %d members", v, n)
		}
	}
}

func stored(t *testing.T, p *part) (*roster.View, uint64) {
	t.Helper()
	e, err := p.session.Bucket().Get(t.Context(), "v.x")
	if err != nil {
		t.Fatal(err)
	}
	v := new(roster.View)
	if err := json.Unmarshal(e.Value, v); err != nil {
		t.Fatal(err)
	}
	return v, e.Rev
}

func TestViewsFollowEachOther(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &hall{ears: map[int]func(string, []byte){}}
		a, b := take(t, s, h, "a", true), take(t, s, h, "b", false)
		for i, pids := range [][]string{{"a"}, {"a", "b"}, {"a", "b", "c"}, {"b"}} {
			a.wants.Store(named(pids...))
			for _, p := range []*part{a, b} {
				if v := p.until(t, len(pids)); v.Epoch != uint64(i+1) {
					t.Errorf("epoch %d with %v, want %d", v.Epoch, pids, i+1)
				}
			}
		}
	})
}

// A follower that hears no announcement reads the view when its patience is over; one
// that misses some reads it at the next.
func TestMissedAnnouncements(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &hall{ears: map[int]func(string, []byte){}}
		a, b := take(t, s, h, "a", true), take(t, s, h, "b", false)
		a.wants.Store(named("a"))
		b.until(t, 1)
		h.mu.Lock()
		h.quiet = true
		h.mu.Unlock()
		a.wants.Store(named("a", "b"))
		began := time.Now()
		b.until(t, 2)
		if took := time.Since(began); took > 16*time.Second {
			t.Errorf("read after %v without a word, want three beacons of 5 s", took)
		}
		a.wants.Store(named("a", "b", "c"))
		a.until(t, 3)
		h.mu.Lock()
		h.quiet = false
		h.mu.Unlock()
		a.wants.Store(named("a"))
		began = time.Now()
		b.until(t, 1)
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("read %v after a gap, want at once", took)
		}
	})
}

// A view with a higher token is of a coordinator that came after: one that finds it
// steps down, and whoever goes on has a higher token still.
func TestCoordinatorStepsDownBeforeAHigherToken(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &hall{ears: map[int]func(string, []byte){}}
		a := take(t, s, h, "a", true)
		a.wants.Store(named("a"))
		before := a.until(t, 1)
		v, rev := stored(t, a)
		v.Epoch, v.Token, v.PID, v.Members = v.Epoch+1, v.Token+1, "other", named("a", "z")
		value, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.session.Bucket().Put(t.Context(), kv.Write{Key: "v.x", Value: value, GuardRev: rev}); err != nil {
			t.Fatal(err)
		}
		a.wants.Store(named("a", "b", "c"))
		after := a.until(t, 3)
		if after.Token <= v.Token || after.Epoch <= v.Epoch {
			t.Errorf("epoch %d, token %d written over epoch %d, token %d by the coordinator with token %d",
				after.Epoch, after.Token, v.Epoch, v.Token, before.Token)
		}
	})
}

// Close ends a coordinator while its session lives; another goes on.
func TestCloseEndsACoordinator(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &hall{ears: map[int]func(string, []byte){}}
		a := take(t, s, h, "a", true)
		a.wants.Store(named("a", "b"))
		a.until(t, 2) // it coordinates, not b
		b := take(t, s, h, "b", true)
		b.until(t, 2)
		began := time.Now()
		a.Close()
		if took := time.Since(began); took > time.Second {
			t.Errorf("Close took %v", took)
		}
		b.wants.Store(named("b"))
		b.until(t, 1)
		if took := time.Since(began); took > 2*time.Second { // it is no member itself, and waits for one that is
			t.Errorf("b coordinates after %v, want a ceiling and a half", took)
		}
		if st, _ := a.session.State(); st.Hold == nil {
			t.Error("a's session ended with its roster")
		}
	})
}

func TestGarbageAnnouncements(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &hall{ears: map[int]func(string, []byte){}}
		a, b := take(t, s, h, "a", true), take(t, s, h, "b", false)
		a.wants.Store(named("a"))
		b.until(t, 1)
		stranger := &seat{h: h, pid: "c"}
		for _, text := range []string{"", "x", "{}", "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", `{"epoch":99,"prev":1}`} {
			stranger.Signal("view-x", []byte(text))
		}
		time.Sleep(time.Minute)
		a.wants.Store(named("a", "b"))
		if v := b.until(t, 2); v.Epoch != 2 {
			t.Errorf("epoch %d, want 2", v.Epoch)
		}
	})
}

// Whoever failed by evidence has been asked for long enough: a group does not wait once
// more. The members do, for others of the same moment, and so does a group for whoever
// left, and for what comes together with a failure.
func TestGroupDoesNotWaitForWhatWasForeseen(t *testing.T) {
	plan := func(_, _ *roster.View) bool { return false }
	for _, c := range []struct {
		name  string
		tune  func(*part)
		after []*roster.Member
		waits bool
	}{
		{"failed", func(p *part) { p.plan, p.sign = plan, roster.Closed }, named("a", "b"), false},
		{"failed, of the members", func(p *part) { p.sign = roster.Closed }, named("a", "b"), true},
		{"left", func(p *part) { p.plan = plan }, named("a", "b"), true},
		{"failed, another came", func(p *part) { p.plan, p.sign = plan, roster.Closed }, append(named("a"), &roster.Member{PID: "d", Inc: 9}), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				a := take(t, s, &hall{ears: map[int]func(string, []byte){}}, "a", true, c.tune)
				a.wants.Store(named("a", "b", "c"))
				a.until(t, 3)
				<-time.After(3 * time.Second) // a calm
				began := time.Now()
				a.wants.Store(c.after)
				a.until(t, 2)
				if took := time.Since(began); took > 0 != c.waits {
					t.Errorf("the view came after %v, waited: want %v", took, c.waits)
				}
			})
		})
	}
}

// After a calm a change waits for a tenth of the quiet time only, also if what it comes
// from is counted twice; if there is more to come, for all of it.
func TestFirstChangeAfterACalm(t *testing.T) {
	for name, c := range map[string]struct {
		again []*roster.Member
		most  time.Duration
	}{
		"counted twice": {named("a", "b"), 6 * time.Millisecond},
		"more comes":    {named("a"), time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				a := take(t, s, &hall{ears: map[int]func(string, []byte){}}, "a", true)
				a.wants.Store(named("a", "b", "c"))
				a.until(t, 3)
				<-time.After(3 * time.Second)
				began := time.Now()
				a.wants.Store(named("a", "b"))
				<-time.After(2 * time.Millisecond)
				a.wants.Store(c.again)
				a.until(t, len(c.again))
				if took := time.Since(began); took > c.most || len(c.again) == 1 && took < 50*time.Millisecond {
					t.Errorf("the view came after %v", took)
				}
			})
		})
	}
}

// A crowd that comes with pauses longer than the quiet time is one view; who leaves does
// not wait for it.
func TestCrowdIsOneView(t *testing.T) {
	for name, c := range map[string]struct {
		leaves bool
		views  uint64 // after the first
	}{"all stay": {false, 1}, "one leaves": {true, 2}} {
		t.Run(name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				a := take(t, s, &hall{ears: map[int]func(string, []byte){}}, "a", true)
				a.wants.Store(named("a", "b"))
				before := a.until(t, 2)
				var all []string
				for i := range 100 {
					all = append(all, string(rune('c'+i)))
				}
				for n := 20; n <= 100; n += 20 {
					here := named(append([]string{"a", "b"}, all[:n]...)...)
					if c.leaves && n > 40 {
						here = slices.Delete(here, 1, 2)
					}
					a.wants.Store(here)
					<-time.After(80 * time.Millisecond)
					if v, _ := a.View(); c.leaves && n == 60 {
						if _, found := v.Find("b"); found {
							t.Error("the member that left has waited for the crowd")
						}
					}
				}
				v := a.until(t, map[bool]int{false: 102, true: 101}[c.leaves])
				if views := v.Epoch - before.Epoch; views != c.views {
					t.Errorf("%d views, want %d", views, c.views)
				}
			})
		})
	}
}

package lease_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// scripted runs f with a simulated server that does as its script says.
func scripted(t *testing.T, f func(t *testing.T, w *simWorld)) {
	natstest.FakeTime(t, func(t *testing.T) {
		w := &simWorld{t: t, s: newSimServer(1)}
		defer w.s.close()
		w.first()
		f(t, w)
	})
}

// open opens the bucket as pid would, over a connection of its own.
func (w *simWorld) open(t *testing.T, pid string, term time.Duration) *kv.Bucket {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(w.s.way()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b := w.bucket(nc, term, simLogger(pid))
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// join starts a session.
func (w *simWorld) join(t *testing.T, pid string, term time.Duration) *lease.Session {
	t.Helper()
	session, err := lease.Start(t.Context(), w.open(t, pid, term), lease.Config{PID: pid, Lease: term, Logger: simLogger(pid)})
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// What three servers answer while their leader changes, which one server never does.
func TestSettleWhileTheLeaderChanges(t *testing.T) {
	for _, c := range []struct {
		name string
		// what becomes of the nth request for the key, writes and reads counted apart
		write, read func(s *simServer, n int, m message) bool
	}{
		{"another write is in flight", func(s *simServer, n int, m message) bool {
			if n < 3 {
				s.reply(m.reply, apiFailure(400, 10164, "wrong last sequence"))
			}
			return n < 3
		}, nil},
		{"stored, and then read from the past", func(s *simServer, n int, m message) bool {
			if n == 0 {
				m.reply = "" // the answer is lost
				s.serve(m)
			}
			return n == 0
		}, func(s *simServer, n int, m message) bool {
			if n < 3 {
				s.reply(m.reply, apiFailure(404, 10037, "no message found"))
			}
			return n < 3
		}},
		{"not stored before it was repeated", func(s *simServer, n int, m message) bool {
			if n == 0 {
				s.after(1200*time.Millisecond, func() { s.serve(m) })
			}
			if n == 1 {
				s.reply(m.reply, wrongLast(1))
			}
			return n < 2
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			scripted(t, func(t *testing.T, w *simWorld) {
				s, b := w.s, w.open(t, "a", simLongest)
				const key = "d.g.x"
				writes, reads := 0, 0
				s.mu.Lock()
				s.script = func(m message) bool {
					switch {
					case strings.HasPrefix(m.subject, simKV+key):
						writes++
						return c.write(s, writes-1, m)
					case strings.Contains(string(m.data), key) && c.read != nil:
						reads++
						return c.read(s, reads-1, m)
					}
					return false
				}
				s.mu.Unlock()
				rev, err := b.Settle(within(t, time.Minute), key, 0, []byte("mine"), 0)
				if err != nil {
					t.Fatalf("Settle = %v after %d writes and %d reads, want the revision", err, writes, reads)
				}
				if e, err := b.Get(within(t, time.Minute), key); err != nil || e.Rev != rev || string(e.Value) != "mine" {
					t.Errorf("stored at %d: %+v, %v", rev, e, err)
				}
			})
		})
	}
}

// A release that a deposed server refuses, because it does not know the claim, is written
// again: the holder lives, so nobody else could ever have it.
func TestReleaseRefusedByADeposedServer(t *testing.T) {
	scripted(t, func(t *testing.T, w *simWorld) {
		s, a, b := w.s, w.join(t, "a", simLongest), w.join(t, "b", simLongest)
		g, err := a.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		s.mu.Lock()
		s.script = func(m message) bool {
			if !strings.HasPrefix(m.subject, simKV+"c.e.x") || !strings.Contains(string(m.data), "released") || refused == 2 {
				return false
			}
			refused++
			s.reply(m.reply, wrongLast(1))
			return true
		}
		s.mu.Unlock()
		if err := g.Release(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Claim("c.e.x").Acquire(within(t, time.Minute), 0); err != nil || refused != 2 {
			t.Errorf("after %d refusals of the release: Acquire = %v", refused, err)
		}
		for _, session := range []*lease.Session{a, b} {
			if err := session.Leave(within(t, time.Minute)); err != nil {
				t.Error(err)
			}
		}
	})
}

// While the servers elect a leader nobody answers: not the writes, which say so, nor what
// asks for the bucket. A session is held again soon after they have one.
func TestResumesSoonAfterAnElection(t *testing.T) {
	scripted(t, func(t *testing.T, w *simWorld) {
		const term, soon = 2 * time.Second, 200 * time.Millisecond
		s, session := w.s, w.join(t, "a", term)
		first, err := session.Held(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range time.Duration(50) {
			s.mu.Lock()
			s.script = func(m message) bool {
				if strings.HasPrefix(m.subject, simKV) {
					s.route(m.reply, noResponders, nil)
				}
				return strings.HasPrefix(m.subject, simKV) || strings.HasPrefix(m.subject, "$JS.API.")
			}
			s.mu.Unlock()
			time.Sleep(4*time.Second + i*97*time.Millisecond)
			if st, _ := session.State(); st.Hold != nil && st.Hold.Valid(0) {
				t.Fatal("it is held and renews nothing")
			}
			s.mu.Lock()
			s.script = nil
			s.mu.Unlock()
			began := time.Now()
			hold, err := session.Held(within(t, 2*term))
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > soon || hold.Incarnation != first.Incarnation {
				t.Errorf("outage %d: held again after %v, as incarnation %d; want within %v, as %d", i, took, hold.Incarnation, soon, first.Incarnation)
			}
		}
		if err := session.Leave(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
	})
}

package lease_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

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
			natstest.FakeTime(t, func(t *testing.T) {
				s := newSimServer(1)
				defer s.close()
				w := &simWorld{t: t, s: s}
				w.first()
				nc, err := nats.Connect("", nats.InProcessServer(s.way()))
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				b := w.bucket(nc, simLongest, simLogger("a"))
				if err := b.Open(t.Context()); err != nil {
					t.Fatal(err)
				}
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

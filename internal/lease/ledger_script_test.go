package lease_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// A value whose Put is in doubt is not hidden by an older one that a deposed server still
// shows: Get returns what is the newest.
func TestGetAfterAPutInDoubtIsNotFromThePast(t *testing.T) {
	for name, stored := range map[string]bool{"stored": true, "not stored": false} {
		t.Run(name, func(t *testing.T) {
			scripted(t, func(t *testing.T, w *simWorld) {
				s, session := w.s, w.join(t, "a", simLongest)
				g, err := session.Claim("c.e.x").Acquire(t.Context(), 0)
				if err != nil {
					t.Fatal(err)
				}
				key := lease.KeyEntry("x", "cursor")
				if err := g.Put(within(t, time.Minute), key, []byte("old")); err != nil {
					t.Fatal(err)
				}
				// The answers to writes of the key are lost, and reads of it come from the past.
				reads := 0
				s.mu.Lock()
				past := s.bucket.read(key)
				s.script = func(m message) bool {
					switch {
					case strings.HasPrefix(m.subject, simKV+key):
						if m.reply = ""; stored {
							s.serve(m)
						}
						return true
					case strings.Contains(string(m.data), simKV+key) && reads < 3:
						reads++
						newest := s.bucket.keys[key]
						s.bucket.keys[key] = past
						s.serve(m)
						s.bucket.keys[key] = newest
						return true
					}
					return false
				}
				s.mu.Unlock()
				if err := g.Put(within(t, 500*time.Millisecond), key, []byte("new")); !errors.Is(err, kv.ErrUnknown) {
					t.Errorf("Put without an answer = %v, want ErrUnknown", err)
				}
				s.mu.Lock()
				lossy := s.script
				s.script = func(m message) bool { return !strings.HasPrefix(m.subject, simKV) && lossy(m) }
				s.mu.Unlock()
				want := "old"
				if stored {
					want = "new"
				}
				for range 2 {
					if got, err := g.Get(within(t, time.Minute), key); err != nil || string(got) != want {
						t.Errorf("Get after %d reads = %q, %v, want %q", reads, got, err, want)
					}
				}
				if err := g.Release(within(t, time.Minute)); err != nil {
					t.Error(err)
				}
				if err := session.Leave(within(t, time.Minute)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

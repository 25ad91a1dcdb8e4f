package fabric_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestOfflineTTL: a message says for how long it may wait for the connection; the others
// wait as the node's Config says.
func TestOfflineTTL(t *testing.T) {
	for _, all := range []time.Duration{0, 30 * time.Second} {
		t.Run(fmt.Sprint(all), func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				began := time.Now()
				lapsed := make(map[uint64]time.Duration)
				a, la := joinLink(t, s, "a", func(c *fabric.Config) {
					c.Offline.TTL, c.Lease = all, time.Minute
					c.OnUndeliverable = func(u fabric.Undeliverable) {
						if !errors.Is(u, fabric.ErrDisconnected) {
							t.Errorf("told %v", u)
						}
						lapsed[u.ID] = time.Since(began).Round(time.Second)
					}
				})
				b := join(t, s, "b")
				await(t, a, "a", "b")
				la.Cut()
				la.Kill()
				for e := range a.Events(within(t, time.Minute)) {
					if e.Kind == fabric.Disconnected {
						break
					}
				}
				began = time.Now()
				for id, ttl := range []time.Duration{1: 40 * time.Second, 2: 0, 3: 10 * time.Second, 4: -1, 5: time.Minute} {
					if id == 0 {
						continue
					}
					err := a.SendMsg(t.Context(), &fabric.Message{To: "b", ID: uint64(id), TTL: ttl, Data: []byte("x")})
					if kept := ttl > 0 || ttl == 0 && all > 0; kept != (err == nil) || !kept && !errors.Is(err, fabric.ErrDisconnected) {
						t.Errorf("message %d: %v, want kept %v", id, err, kept)
					}
				}
				time.Sleep(35 * time.Second)
				want := map[uint64]time.Duration{3: 10 * time.Second}
				if all > 0 {
					want[2] = all
				}
				synctest.Wait()
				if fmt.Sprint(lapsed) != fmt.Sprint(want) {
					t.Errorf("lapsed: %v, want %v", lapsed, want)
				}
				la.Heal()
				for _, id := range []uint64{1, 5} {
					if m := next(t, b); m.ID != id || m.TTL != 0 {
						t.Errorf("received %d, want %d", m.ID, id)
					}
				}
				quiet(t, b, time.Minute)
			})
		})
	}
}

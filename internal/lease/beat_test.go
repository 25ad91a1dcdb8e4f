package lease_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestRenewalsFallTogether: processes that began at any time renew on the beats that they
// share, no less often than they must, and not all on the same ones.
func TestRenewalsFallTogether(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		const every = ttl * 3 / 8
		_, nc := connect(t, s)
		var mu sync.Mutex
		renewed := map[string][]time.Time{}
		if _, err := nc.Subscribe("fab.test.production.kv.s.*", func(m *nats.Msg) {
			mu.Lock()
			defer mu.Unlock()
			renewed[m.Subject] = append(renewed[m.Subject], time.Now())
		}); err != nil {
			t.Fatal(err)
		}
		const procs = 20
		var all []*proc
		for i := range procs {
			all = append(all, start(t, s, string(rune('a'+i))))
			time.Sleep(rand.N(every))
		}
		from := time.Now().Add(every)
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		beat := lease.BeatOf(ttl)
		slots, sum, n := map[time.Duration]bool{}, time.Duration(0), 0
		for key, times := range renewed {
			for i, at := range times[1:] {
				if at.Before(from) {
					continue
				}
				late := at.Sub(at.Truncate(beat))
				if late > time.Millisecond {
					t.Errorf("%s renewed %v after a beat of %v", key, late, beat)
				}
				if wait := at.Sub(times[i]); wait > every {
					t.Errorf("%s renewed after %v, want at most %v", key, wait, every)
				}
				slots[at.Sub(from.Truncate(beat))/beat%8] = true
				sum, n = sum+at.Sub(times[i]), n+1
			}
		}
		if len(renewed) != procs || len(slots) < 4 {
			t.Errorf("%d renewed, on %d of 8 beats", len(renewed), len(slots))
		}
		if mean := sum / time.Duration(n); mean < every*97/100 {
			t.Errorf("renewed each %v, want not much less than %v", mean, every)
		}
		for _, p := range all {
			p.leave(t)
		}
	})
}

package kv_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestWatchRereadsWhatIsQuiet: what is told again and again is not read, and what is not
// told of is, of few keys each half a minute, of many more seldom, and all after a nudge.
func TestWatchRereadsWhatIsQuiet(t *testing.T) {
	for _, of := range []struct {
		keys  int
		every time.Duration
	}{{20, 30 * time.Second}, {300, time.Minute}} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			a, _, _ := opened(t, s)
			revs := make([]uint64, of.keys)
			const told = 4 // few enough for the watch to read all that changed
			key := func(i int) string { return fmt.Sprint("s.k", i) }
			renew := func(some int) {
				for i := range some {
					revs[i] = put(t, a, key(i), "x", revs[i])
				}
			}
			renew(of.keys)
			var mu sync.Mutex
			reads := map[string]int{}
			other, _ := connect(t, s)
			if _, err := other.Subscribe("$JS.API.STREAM.MSG.GET.>", func(m *nats.Msg) {
				if _, after, ok := strings.Cut(string(m.Data), `"last_by_subj":"$KV.fab_test_production.`); ok {
					mu.Lock()
					defer mu.Unlock()
					reads[strings.TrimSuffix(after, `"}`)]++
				}
			}); err != nil {
				t.Fatal(err)
			}
			if err := other.Flush(); err != nil {
				t.Fatal(err)
			}
			counted := func() (loud, quiet int) { // reads of a key of either kind, on average
				mu.Lock()
				defer mu.Unlock()
				for i := range of.keys {
					if i < told {
						loud += reads[key(i)]
					} else {
						quiet += reads[key(i)]
					}
				}
				clear(reads)
				return loud / told, quiet / (of.keys - told)
			}
			b, _, _ := opened(t, s)
			watch(t, b, "s.*")
			pass := func(d time.Duration) {
				for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(2 * time.Second) {
					renew(told)
				}
			}
			pass(4 * round) // the first two readings are of all
			counted()
			pass(6 * of.every)
			if loud, quiet := counted(); loud != 0 || quiet < 4 || quiet > 6 {
				t.Errorf("of %d keys, in %v: what was told was read %d times, and what was quiet %d times, want 0 and 5", of.keys, 6*of.every, loud, quiet)
			}
			b.Nudge()
			pass(round)
			if loud, quiet := counted(); loud != 1 || quiet != 1 {
				t.Errorf("of %d keys, after a nudge: read %d and %d times, want all once", of.keys, loud, quiet)
			}
		})
	}
}

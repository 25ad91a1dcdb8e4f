package fabric_test

import (
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestShortLeaseAmongLongOnes: a member whose lease is shorter than the coordinator's is gone
// when its own lease has run out, and also if it crashed before it was known for long.
func TestShortLeaseAmongLongOnes(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a", func(c *fabric.Config) { c.Lease, c.LeaseOnly = 30*time.Second, true })
		time.Sleep(time.Minute)
		for range 3 {
			v, link := joinLink(t, s, "v", func(c *fabric.Config) { c.Lease, c.LeaseOnly = time.Second, true })
			await(t, a, "a", "v")
			began := time.Now()
			crash(v, link)
			await(t, a, "a")
			if took := time.Since(began); took > 2500*time.Millisecond {
				t.Errorf("gone %v after it crashed, want little more than its lease", took)
			}
		}
	})
}

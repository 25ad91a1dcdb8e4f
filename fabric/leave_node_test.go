package fabric_test

import (
	"context"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestLeaveWithoutADeadline: the coordinator leaves over a cut link within a few leases,
// although its context never ends.
func TestLeaveWithoutADeadline(t *testing.T) {
	for name, away := range map[string]time.Duration{"at once": 0, "lease lapsed": 2 * ttl} {
		t.Run(name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				a, link := joinLink(t, s, "a")
				time.Sleep(time.Second)
				link.Cut()
				time.Sleep(away)
				left := make(chan error, 1)
				go func() { left <- a.Leave(context.Background()) }()
				select {
				case err := <-left:
					if err == nil {
						t.Error("Leave over a cut link succeeded")
					}
				case <-time.After(3 * ttl):
					t.Error("Leave has not returned after three leases")
					link.Heal()
					<-left
				}
			})
		})
	}
}

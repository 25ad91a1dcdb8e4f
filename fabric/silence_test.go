package fabric_test

import (
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A server that falls silent is found after two and a half pings, of which a lease
// has four; one that is only quiet is not found to be.
func TestSilentServerIsFound(t *testing.T) {
	for _, cut := range []struct {
		name  string
		how   func(*natstest.Link)
		limit time.Duration
	}{
		{"both ways", (*natstest.Link).Cut, 3500 * time.Millisecond},
		{"answers only", (*natstest.Link).CutReplies, 3500 * time.Millisecond},
	} {
		t.Run(cut.name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				// Without FastOptions: with the node's own.
				n, link := joinLink(t, s, "a", func(c *fabric.Config) {
					c.NATS = c.NATS[len(natstest.FastOptions()):]
				})
				events := make(chan fabric.Event, 10)
				go func() {
					defer close(events)
					for e, err := range n.Events(t.Context()) {
						if err != nil {
							return
						}
						events <- e
					}
				}()
				select {
				case e := <-events:
					t.Fatalf("quiet, and %v", e.Kind)
				case <-time.After(time.Minute):
				}
				began := time.Now()
				cut.how(link)
				if e := <-events; e.Kind != fabric.Disconnected || time.Since(began) > cut.limit {
					t.Errorf("%v after %v, want %v within %v", e.Kind, time.Since(began), fabric.Disconnected, cut.limit)
				}
				link.Heal()
				for e := range events {
					if e.Kind == fabric.Reconnected {
						break
					}
				}
				n.Leave(t.Context())
			})
		})
	}
}

package fabric_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
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

// Who joins and leaves while nothing is wrong logs no warning.
func TestLeaveWarnsOfNothing(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		join(t, s, "a")
		time.Sleep(time.Minute)
		var said bytes.Buffer
		for i := range 100 {
			n := join(t, s, fmt.Sprint("b", i), func(cfg *fabric.Config) {
				cfg.Logger = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))
			})
			time.Sleep(time.Duration(i) * 20 * time.Millisecond)
			if err := n.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if said.Len() > 0 {
			t.Errorf("members that left said\n%s", said.String())
		}
	})
}

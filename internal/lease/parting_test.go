package lease_test

import (
	"context"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestLeaveWithoutADeadlineEnds: Leave waits neither for a link that is cut nor for a claim
// that cannot be given back over it, whether its lease runs out before or not.
func TestLeaveWithoutADeadlineEnds(t *testing.T) {
	for name, test := range map[string]struct {
		grants int
		away   time.Duration
	}{
		"nothing held":           {},
		"a grant":                {grants: 1},
		"two grants":             {grants: 2},
		"a grant, lease lapsing": {grants: 1, away: ttl - time.Second},
		"a grant, lease lapsed":  {grants: 1, away: 2 * ttl},
	} {
		t.Run(name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				a, b := start(t, s, "a"), start(t, s, "b")
				for i := range test.grants {
					g, err := a.Claim("c.e.x"+string(rune('0'+i))).Acquire(within(t, time.Minute), time.Second)
					if err != nil {
						t.Fatal(err)
					}
					g.ReleaseWhenLost()
					go func() {
						<-g.Context().Done()
						g.Release(context.WithoutCancel(t.Context())) // nobody reads its outcome
					}()
				}
				a.link.Cut()
				time.Sleep(test.away)
				began := time.Now()
				left := make(chan error, 1)
				go func() { left <- a.Leave(context.WithoutCancel(t.Context())) }()
				select {
				case err := <-left:
					if err == nil {
						t.Error("Leave over a cut link succeeded")
					}
				case <-time.After(3 * ttl):
					t.Errorf("Leave has not returned %v after it was called", time.Since(began))
					a.link.Heal()
					<-left
				}
				a.nc.Close()
				if g, err := b.Claim("c.e.x0").Acquire(within(t, time.Minute), 0); err != nil {
					t.Errorf("what was not given back: %v", err)
				} else {
					g.Release(within(t, time.Second))
				}
				b.leave(t)
			})
		})
	}
}

// TestReleaseLongAfterLeaveBegan: work that ends more than a lease after Leave began still
// gives its claim back, to whom it names.
func TestReleaseLongAfterLeaveBegan(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := start(t, s, "a")
		g, err := a.Claim("c.e.x").Acquire(within(t, time.Minute), 0)
		if err != nil {
			t.Fatal(err)
		}
		exit := a.Enter()
		left := make(chan error, 1)
		go func() { left <- a.Leave(within(t, time.Minute)) }()
		time.Sleep(2 * ttl)
		if err := g.Release(within(t, time.Second)); err != nil {
			t.Errorf("Release %v after Leave began: %v", 2*ttl, err)
		}
		exit()
		if err := <-left; err != nil {
			t.Errorf("Leave: %v", err)
		}
	})
}

package election_test

import (
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A candidate that lost its session and goes on under another incarnation stands as before,
// in its place among those of other priorities.
func TestCandidateThatRejoinedStands(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		term := campaign(t, of(t, join(t, s, "a"), 0))
		b, link := joinLink(t, s, "b")
		terms := inBackground(t, ranked(t, b, 2, false))
		time.Sleep(time.Second)
		low := inBackground(t, ranked(t, join(t, s, "c"), 1, false))
		time.Sleep(time.Second)
		for range 2 {
			before := b.Incarnation()
			link.Cut()
			time.Sleep(3 * ttl)
			link.Heal()
			time.Sleep(20 * time.Second)
			if b.Incarnation() == before {
				t.Fatal("b kept its session: the test shows nothing")
			}
		}
		l, err := term.Transfer(within(t, time.Second), "")
		if err != nil || l.PID != fabric.PID("b") {
			t.Fatalf("Transfer to the first = %+v, %v; want b", l, err)
		}
		resign(t, <-terms)
		resign(t, <-low)
	})
}

package balance

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// inByDesk joins the group g under pid, and asks JetStream by way of a desk that hands on
// what is not to be withheld.
func inByDesk(t *testing.T, s *natstest.Server, pid string, cfg Config, withhold func(*nats.Msg) bool) *seen {
	t.Helper()
	s.Desk(withhold)
	n, err := fabric.Join(limit(t, time.Minute), fabric.Config{
		Cluster: "c", PID: fabric.PID(pid), Domain: natstest.DeskDomain, Logger: logTo(t, pid),
		NATS: append(natstest.FastOptions(), nats.InProcessServer(s.Link())),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Leave(limit(t, time.Second)) })
	return inBy(t, n, nil, cfg)
}

// A member whose wish cannot be written, while its lease is renewed, follows the others.
func TestClusterFollowsWhileItsWishIsNotWritten(t *testing.T) {
	for name, mode := range map[string]Mode{"default": Default, "strict": StrictIndex} {
		t.Run(name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				var denied atomic.Bool
				cfg := Config{Mode: mode}
				z := in(t, s, "z", cfg) // coordinates
				a := inByDesk(t, s, "a", cfg, func(m *nats.Msg) bool {
					return denied.Load() && strings.HasSuffix(m.Subject, ".g.g.a")
				})
				a.awaitShare(t, time.Minute, 0, 1, 2)
				denied.Store(true)
				if err := a.SetWorkers(limit(t, time.Second), 3); err == nil {
					t.Fatal("SetWorkers succeeded without an answer")
				}
				var more []*seen
				for i, pid := range []string{"b", "c", "d"} {
					more = append(more, in(t, s, pid, cfg))
					a.await(t, "the others", func() bool { return a.Share().Total == 3+i })
				}
				denied.Store(false)
				a.await(t, "its wish", func() bool { return a.Share().Workers == 3 && a.Share().Total == 7 })
				for _, m := range append(more, a, z) {
					withdraw(t, m)
				}
			})
		})
	}
}

// A coordinator that cannot find out whether dead members are over goes on with the others.
func TestClusterSweepsBesideTheCensus(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		var asked atomic.Int64
		var denied atomic.Bool
		began := time.Now()
		z := inByDesk(t, s, "z", Config{}, func(m *nats.Msg) bool { // coordinates
			if !denied.Load() || !bytes.Contains(m.Data, []byte(".c.p.dead")) {
				return false
			}
			asked.Add(1)
			return true
		})
		var dead []*seen
		for i := range 8 {
			dead = append(dead, in(t, s, fmt.Sprint("dead", i), Config{}))
			dead[i].link.Cut()
		}
		a := in(t, s, "a", Config{})
		a.awaitShare(t, time.Minute, 0, 1, 2)
		time.Sleep(sweep - 5*time.Second - time.Since(began))
		denied.Store(true)
		for i := range 100 {
			n := 2 + i%2
			if err := a.SetWorkers(limit(t, time.Minute), n); err != nil {
				t.Fatal(err)
			}
			if took := a.awaitShare(t, time.Minute, 0, n, n+1); took > time.Second {
				t.Errorf("a change was seen after %v", took)
			}
		}
		time.Sleep(sweep)
		if n := asked.Load(); n < 8 {
			t.Errorf("%d of 8 dead members were asked for", n)
		}
		denied.Store(false)
		for _, m := range dead {
			m.node.Leave(limit(t, time.Millisecond)) // fails
		}
		time.Sleep(2 * ttl)
		withdraw(t, a)
		withdraw(t, z)
	})
}

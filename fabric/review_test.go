package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), d)
	t.Cleanup(cancel)
	return ctx
}

// The store takes no writes for longer than a lease, at any phase of the renewals.
// Nobody is expelled, also where leases differ.
func TestOutageExpelsNobody(t *testing.T) {
	for _, away := range []time.Duration{4 * time.Second, 6 * time.Second, 8 * time.Second, 30 * time.Second} {
		t.Run(away.String(), func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				var nodes []*fabric.Node
				var pids []fabric.PID
				for i, lease := range []time.Duration{5, 5, 1, 2, 5} {
					pid := fmt.Sprint("n", i)
					pids = append(pids, fabric.PID(pid))
					nodes = append(nodes, join(t, s, pid, func(c *fabric.Config) { c.Lease = lease * time.Second }))
				}
				await(t, nodes[0], pids...)
				for round := range 3 {
					time.Sleep(11*time.Second + time.Duration(round)*600*time.Millisecond)
					epoch := nodes[0].View().Epoch
					s.Stop()
					time.Sleep(away)
					s.Start()
					time.Sleep(20 * time.Second)
					for _, n := range nodes {
						if v := n.View(); v.Epoch != epoch || !same(v, pids) {
							t.Errorf("after outage %d, %s has %v in epoch %d, was %d", round, n.PID(), v.Members, v.Epoch, epoch)
						}
						if n.Incarnation() == 0 {
							t.Errorf("after outage %d, %s has no lease", round, n.PID())
						}
					}
				}
			})
		})
	}
}

// After an outage who comes back later than the others is not expelled, either: its lease
// is counted from the end of the outage.
func TestOutageExpelsNobodyWhoIsLate(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		late, link := joinLink(t, s, "late")
		await(t, a, "a", "b", "late")
		epoch := a.View().Epoch
		s.Stop()
		link.Cut()
		time.Sleep(ttl * 7 / 10) // the coordinator goes on
		s.Start()
		time.Sleep(ttl * 6 / 10)
		link.Heal()
		time.Sleep(4 * ttl)
		for _, n := range []*fabric.Node{a, b, late} {
			if v := n.View(); v.Epoch != epoch || n.Incarnation() == 0 {
				t.Errorf("%s has %v in epoch %d, was %d", n.PID(), v.Members, v.Epoch, epoch)
			}
		}
	})
}

// After the bucket was lost and made anew everyone has the same members again.
func TestViewsAfterTheBucketWasLost(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		var nodes []*fabric.Node
		var pids []fabric.PID
		for i := range 4 {
			pid := fmt.Sprint("n", i)
			pids = append(pids, fabric.PID(pid))
			nodes = append(nodes, join(t, s, pid))
		}
		for range 5 { // epochs
			n := join(t, s, "x")
			if err := n.Leave(within(t, time.Second)); err != nil {
				t.Fatal(err)
			}
		}
		await(t, nodes[0], pids...)
		nc := s.Connect()
		if _, err := nc.Request("$JS.API.STREAM.DELETE.KV_fab_c_production", nil, time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		first := nodes[0].View()
		for _, n := range nodes {
			v := n.View()
			if !same(v, pids) || v.Epoch != first.Epoch {
				t.Errorf("%s has %v in epoch %d, the first has epoch %d", n.PID(), v.Members, v.Epoch, first.Epoch)
				continue
			}
			if m := v.Members[0]; m.Incarnation != nodes[0].Incarnation() {
				t.Errorf("%s has %s under incarnation %d, which has %d", n.PID(), m.PID, m.Incarnation, nodes[0].Incarnation())
			}
		}
	})
}

func TestLeaseOfFractionsOfAMillisecond(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		n := join(t, s, "a", func(c *fabric.Config) { c.Lease = 1500*time.Millisecond + 500*time.Microsecond })
		await(t, n, "a")
	})
}

// There is nothing to give the PID back in.
func TestLeaveWithoutABucket(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		n := join(t, s, "a")
		if _, err := s.Connect().Request("$JS.API.STREAM.DELETE.KV_fab_c_production", nil, time.Second); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err := n.Leave(within(t, time.Minute))
		if took := time.Since(began); err != nil || took > 2*time.Second {
			t.Errorf("Leave = %v after %v", err, took)
		}
	})
}

// The server is frozen, and then does what it was sent meanwhile. The coordinator
// has a longer lease than the others, so it notices later than theirs run out.
func TestFrozenServerExpelsNobody(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		var nodes []*fabric.Node
		var links []*natstest.Link
		var pids []fabric.PID
		for i, lease := range []time.Duration{10, 1, 1, 1} {
			pid := fmt.Sprint("n", i)
			n, l := joinLink(t, s, pid, func(c *fabric.Config) { c.Lease = lease * time.Second })
			nodes, links, pids = append(nodes, n), append(links, l), append(pids, fabric.PID(pid))
		}
		await(t, nodes[0], pids...)
		freezes := []time.Duration{}
		for i := range 20 {
			freezes = append(freezes, 1500*time.Millisecond+time.Duration(i)*100*time.Millisecond)
			// As soon as one could be ended for its silence, what it sent meanwhile arrives.
			freezes = append(freezes, 1015*time.Millisecond+time.Duration(i)*5*time.Millisecond)
		}
		for round, freeze := range freezes {
			time.Sleep(12*time.Second + time.Duration(round)*130*time.Millisecond)
			epoch := nodes[0].View().Epoch
			for _, l := range links {
				l.Cut()
			}
			time.Sleep(freeze)
			for _, l := range links {
				l.Heal()
			}
			time.Sleep(15 * time.Second)
			for _, n := range nodes {
				if v := n.View(); v.Epoch != epoch || !same(v, pids) {
					t.Fatalf("after freeze %d of %v, %s has %v in epoch %d, was %d", round, freeze, n.PID(), v.Members, v.Epoch, epoch)
				}
			}
		}
	})
}

// Without the feed the node would be deaf for 5 s at a time: Join says so.
func TestMissingPermissionForTheFeed(t *testing.T) {
	s := natstest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{">"}},
			Subscribe: &server.SubjectPermission{Allow: []string{">"}, Deny: []string{"fab.c.production.kv.>"}},
		}}}
	})
	_, err := fabric.Join(within(t, 10*time.Second), fabric.Config{
		Cluster: "c", PID: "a", NATS: []nats.Option{nats.InProcessServer(s.Link()), nats.UserInfo("u", "p")},
	})
	if e, ok := errors.AsType[*fabric.PermissionError](err); !ok || e.Op != "subscribe" {
		t.Errorf("Join = %v, want a *PermissionError for the feed", err)
	}
}

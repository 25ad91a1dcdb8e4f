package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// Garbage in a key neither grants nor revokes, and never panics. A view that is not
// the fabric's is an error at Join.
func TestGarbageInTheBucket(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc := s.Connect()
		a, b := join(t, s, "a"), join(t, s, "b")
		await(t, a, "a", "b")
		incs := []uint64{a.Incarnation(), b.Incarnation()}
		garbage := []string{"", "garbage", "{}", "null", "[]", `{"key":"c.p.a"}`, `{"key":"s.a","pid":"a","inc":1,"lease_ms":-5}`, "\x00\xff", `{"key":"s.z","pid":"z","inc":1,"lease_ms":5000}`}
		for _, text := range garbage {
			for _, key := range []string{"s.a", "s.b", "s.z", "s.*.x", "s.zz", "c.p.zz", "c.q.a", "x", "g.a", "c.p.z", "v.other"} {
				if strings.Contains(key, "*") {
					continue
				}
				write(t, nc, key, text)
			}
			time.Sleep(20 * time.Second)
		}
		for i, n := range []*fabric.Node{a, b} {
			if n.Incarnation() != incs[i] || !same(n.View(), []fabric.PID{"a", "b"}) {
				t.Errorf("%s: incarnation %d, was %d; view %v", n.PID(), n.Incarnation(), incs[i], n.View())
			}
		}
		_, err := fabric.Join(within(t, time.Minute), fabric.Config{Cluster: "c", PID: "z", NATS: options(s.Link())})
		if !errors.Is(err, fabric.ErrBucket) || !strings.Contains(err.Error(), "c.p.z") {
			t.Errorf("Join over a foreign claim = %v, want ErrBucket that names the key", err)
		}
		write(t, nc, "v.members", "garbage")
		_, err = fabric.Join(within(t, time.Minute), fabric.Config{Cluster: "c", PID: "y", NATS: options(s.Link())})
		if !errors.Is(err, fabric.ErrBucket) || !strings.Contains(err.Error(), "v.members") {
			t.Errorf("Join over a foreign view = %v, want ErrBucket that names the key", err)
		}
		if !same(a.View(), []fabric.PID{"a", "b"}) {
			t.Errorf("the view is %v, want the last good one", a.View())
		}
		// A person removes it, and the fabric goes on.
		m := nats.NewMsg("$KV.fab_c_production.v.members")
		m.Header.Set("KV-Operation", "DEL")
		if _, err := nc.RequestMsg(m, time.Second); err != nil {
			t.Fatal(err)
		}
		join(t, s, "c")
		await(t, a, "a", "b", "c")
	})
}

// Somebody overwrites a PID's own claim with garbage: its holder is over, because
// nothing says any more that it is not, and the view forgets it.
func TestGarbageOverAClaim(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		await(t, a, "a", "b")
		write(t, s.Connect(), "c.p.b", "garbage")
		<-b.Context().Done()
		if cause := context.Cause(b.Context()); !errors.Is(cause, fabric.ErrBucket) {
			t.Errorf("b ends with %v, want ErrBucket", cause)
		}
		await(t, a, "a")
		if a.Context().Err() != nil || a.Incarnation() == 0 {
			t.Error("a was ended")
		}
	})
}

func TestVanishedBucketIsRebuilt(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b, c := join(t, s, "a"), join(t, s, "b"), join(t, s, "c")
		nodes := []*fabric.Node{a, b, c}
		folds := []*fold{follow(a, 0), follow(b, 0), follow(c, 0)}
		for range 3 {
			await(t, a, "a", "b", "c")
			inc := a.Incarnation()
			time.Sleep(time.Minute)
			deleteBucket(t, s)
			time.Sleep(4 * ttl)
			if got := a.Incarnation(); got <= inc {
				t.Errorf("incarnation %d after the bucket was lost, %d before", got, inc)
			}
			for i, n := range nodes {
				if !same(n.View(), []fabric.PID{"a", "b", "c"}) || n.View().Epoch != a.View().Epoch {
					t.Errorf("%s has the view %v, a %v", n.PID(), n.View(), a.View())
				}
				if diff := folds[i].equals(n.View()); diff != "" {
					t.Error(diff)
				}
			}
		}
	})
}

// Every process is killed, and all come back under their PIDs.
func TestEverybodyRestarts(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		for range 3 {
			a, la := joinLink(t, s, "a")
			b, lb := joinLink(t, s, "b")
			c, lc := joinLink(t, s, "c")
			await(t, c, "a", "b", "c")
			time.Sleep(3 * time.Second)
			crash(a, la)
			crash(b, lb)
			crash(c, lc)
			s.Restart()
			synctest.Wait()
		}
		var wg sync.WaitGroup
		began := time.Now()
		nodes := make([]*fabric.Node, 3)
		for i, pid := range []fabric.PID{"a", "b", "c"} {
			wg.Go(func() {
				var err error
				if nodes[i], err = fabric.Join(within(t, time.Minute), fabric.Config{Cluster: "c", PID: pid, NATS: options(s.Link())}); err != nil {
					t.Errorf("join: %v", err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		if took := time.Since(began); took > 2*ttl+ttl/25+time.Second {
			t.Errorf("all joined again after %v, want 2.02 leases + 1 s", took)
		}
		await(t, nodes[0], "a", "b", "c")
		for _, n := range nodes {
			leave(t, n)
		}
	})
}

// The coordinator crashes with others. In a small fabric everyone left watches it;
// in a large one nine may be all who did, and its silence is noticed first, after two
// beacons of 5 s.
func TestCoordinatorAndOthersCrash(t *testing.T) {
	const usual = 2*ttl + ttl/50 + time.Second
	for _, tt := range []struct {
		size, crash int
		within      time.Duration
	}{
		{6, 5, usual},
		{34, 9, usual + 10*time.Second},
	} {
		t.Run(fmt.Sprint(tt.crash, " of ", tt.size), func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				var nodes []*fabric.Node
				var links []*natstest.Link
				for i := range tt.size {
					n, l := joinLink(t, s, strconv.Itoa(i))
					nodes, links = append(nodes, n), append(links, l)
				}
				var all []fabric.PID
				for _, n := range nodes {
					all = append(all, n.PID())
				}
				last := nodes[tt.size-1]
				await(t, last, all...)
				time.Sleep(10 * time.Second)
				began := time.Now()
				for i := range tt.crash {
					crash(nodes[i], links[i])
				}
				await(t, last, all[tt.crash:]...)
				if took := time.Since(began); took > tt.within {
					t.Errorf("the last one knew after %v, want %v", took, tt.within)
				}
			})
		})
	}
}

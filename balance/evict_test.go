package balance

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// personOn returns a node that is in no group.
func personOn(t *testing.T, s *natstest.Server) *fabric.Node {
	t.Helper()
	n, err := fabric.Join(limit(t, time.Minute), fabric.Config{Cluster: "c", Passive: true, NATS: append(natstest.FastOptions(), nats.InProcessServer(s.Link()))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Leave(limit(t, time.Second)) })
	return n
}

// incarnation returns that of a PID, as m sees it.
func incarnation(m *seen, pid string) uint64 {
	for _, p := range m.Members() {
		if string(p.PID) == pid {
			return p.Incarnation
		}
	}
	return 0
}

// The place that Rejoin keeps for an evicted member is an empty one, whether the member
// ends before or after it was evicted; and empty it stays until another process comes.
func TestClusterEvictAndRejoin(t *testing.T) {
	for _, cfg := range []Config{
		{Workers: 2}, {Workers: 2, Layout: Sticky}, {Workers: 2, Mode: StrictIndex}, {Workers: 2, Partitions: 40, MoveBudget: -1},
	} {
		for _, dead := range []bool{false, true} {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				cfg := cfg
				cfg.Rejoin = time.Minute
				a, b, person := in(t, s, "a", cfg), in(t, s, "b", cfg), personOn(t, s)
				b.await(t, "a share", func() bool { return b.Share().Total == 4 && b.Share().First >= 0 })
				crash := func() {
					t.Helper()
					a.link.Cut()
					b.await(t, "an empty chair", func() bool { return b.standing("a") == "away" })
				}
				if dead {
					crash()
				}
				left := -1
				if err := Evict(limit(t, 20*time.Second), person, "g", "a", func(n int) { left = n }); err != nil || left != 0 {
					t.Errorf("kind %q, dead %v: Evict = %v with %d left", cfg.kind(), dead, err, left)
				}
				if !dead {
					crash()
				}
				time.Sleep(5 * time.Second)
				if got := b.Share(); got.Total != 2 || got.Workers != 2 || len(b.Partitions().Mine()) != cfg.Partitions {
					t.Errorf("kind %q, dead %v: b has %v and %d partitions", cfg.kind(), dead, got, len(b.Partitions().Mine()))
				}
				inc := incarnation(b, "a")
				a.link.Heal() // the same process comes back
				b.await(t, "the next incarnation", func() bool { return incarnation(b, "a") > inc })
				time.Sleep(2 * time.Second)
				if got := b.standing("a"); got != "evicted" || b.Share().Total != 2 {
					t.Errorf("kind %q, dead %v: after it has rejoined a is %q, and b has %v", cfg.kind(), dead, got, b.Share())
				}
				if err := a.node.Leave(limit(t, time.Minute)); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Second)
				a = in(t, s, "a", cfg) // another one
				a.await(t, "its place", func() bool { return a.Share().Workers == 2 && a.Share().Total == 4 })
				withdraw(t, a)
				withdraw(t, b)
			})
		}
	}
}

// A member that loses its lease and rejoins is the one that was evicted, also to a
// coordinator that sees it come without knowing it.
func TestClusterEvictAndLoseTheLease(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		first, a, b, person := in(t, s, "f", Config{}), in(t, s, "a", Config{}), in(t, s, "b", Config{}), personOn(t, s)
		b.await(t, "a share", func() bool { return b.Share().Total == 3 })
		if err := Evict(limit(t, time.Minute), person, "g", "a", nil); err != nil {
			t.Fatal(err)
		}
		a.link.Cut()
		b.await(t, "its end", func() bool { return b.standing("a") == "no member" })
		withdraw(t, first)
		b.await(t, "all of it", func() bool { return b.Share().Total == 1 })
		a.link.Heal()
		b.await(t, "the next incarnation", func() bool { return incarnation(b, "a") != 0 })
		time.Sleep(2 * time.Second)
		if got := b.standing("a"); got != "evicted" || b.Share().Total != 1 || a.Share().First != -1 {
			t.Errorf("after it has rejoined a is %q with %v, and b has %v", got, a.Share(), b.Share())
		}
		if err := Restore(limit(t, time.Minute), person, "g", "a"); err != nil {
			t.Error(err)
		}
		a.awaitShare(t, time.Minute, 0, 1, 2)
		withdraw(t, a)
		withdraw(t, b)
	})
}

// An eviction outlasts its record, also at a coordinator that has never read one, and
// nothing but the newest one takes it back.
func TestEvictionOutlastsItsRecord(t *testing.T) {
	node := time.Now()
	for name, tt := range map[string]struct {
		records []eviction
		old     roster.Member
		want    bool
	}{
		"no record":                    {nil, roster.Member{PID: "a", Inc: 7, Given: roster.Given{Evicted: true}}, true},
		"no record, nor evicted":       {nil, roster.Member{PID: "a", Inc: 7}, false},
		"no record, another life":      {nil, roster.Member{PID: "a", Inc: 6, Given: roster.Given{Evicted: true}}, false},
		"evicted":                      {[]eviction{{PID: "a", Inc: 7}}, roster.Member{PID: "a", Inc: 7}, true},
		"restored":                     {[]eviction{{PID: "a"}}, roster.Member{PID: "a", Inc: 7, Given: roster.Given{Evicted: true}}, false},
		"evicted, and has rejoined":    {[]eviction{{PID: "a", Inc: 6, Node: node}}, roster.Member{PID: "a", Inc: 6}, true},
		"evicted, and started anew":    {[]eviction{{PID: "a", Inc: 6, Node: node.Add(1)}}, roster.Member{PID: "a", Inc: 6, Given: roster.Given{Evicted: true}}, false},
		"no record, and has rejoined":  {nil, roster.Member{PID: "a", Inc: 6, Since: node, Given: roster.Given{Evicted: true}}, true},
		"another evicted":              {[]eviction{{PID: "b", Inc: 7}}, roster.Member{PID: "a", Inc: 7}, false},
		"restored, and it was another": {[]eviction{{PID: "b"}}, roster.Member{PID: "a", Inc: 7, Given: roster.Given{Evicted: true}}, true},
	} {
		view := &roster.View{Key: "v", Epoch: 3, Members: []*roster.Member{&tt.old}}
		c := counter{
			m: &member{}, away: map[string]time.Time{}, evicted: map[string]eviction{},
			wishes: map[string]wish{"w": {Key: "w", PID: "a", Inc: 7, Since: node}},
		}
		for _, x := range tt.records {
			c.evicted[x.PID] = x
		}
		_, count := c.count(t.Context(), &roster.View{Members: []*roster.Member{{PID: "a", Inc: 7}}}, view, time.Now())
		if len(count.Members) != 1 || count.Members[0].Evicted != tt.want {
			t.Errorf("%s: %v, want Evicted %v", name, count.Members, tt.want)
		}
	}
}

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

// The place that Rejoin keeps for an evicted member is an empty one, whether the member
// ends before or after it was evicted.
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
				a.link.Heal() // its new incarnation
				a.await(t, "its place", func() bool { return a.Share().Workers == 2 && a.Share().Total == 4 })
				withdraw(t, a)
				withdraw(t, b)
			})
		}
	}
}

// An eviction outlasts its record, also at a coordinator that has never read one, and
// nothing but the newest one takes it back.
func TestEvictionOutlastsItsRecord(t *testing.T) {
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
		"another evicted":              {[]eviction{{PID: "b", Inc: 7}}, roster.Member{PID: "a", Inc: 7}, false},
		"restored, and it was another": {[]eviction{{PID: "b"}}, roster.Member{PID: "a", Inc: 7, Given: roster.Given{Evicted: true}}, true},
	} {
		view := &roster.View{Key: "v", Epoch: 3, Members: []*roster.Member{&tt.old}}
		c := counter{
			m: &member{}, away: map[string]time.Time{}, evicted: map[string]eviction{},
			wishes: map[string]wish{"w": {Key: "w", PID: "a", Inc: 7}},
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

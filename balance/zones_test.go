package balance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// Each zone divides all partitions among its own members, exactly as a group with nobody
// else would: so what comes and goes in one zone moves nothing in another.
func FuzzZones(f *testing.F) {
	for i := range 6 {
		f.Add(uint64(i), uint8(30), uint8(7))
	}
	f.Add(uint64(256), uint8(43), uint8(1)) // one on probation is alone in its zone
	f.Fuzz(func(t *testing.T, seed uint64, steps, parts uint8) {
		p := newPlanner(t, seed, kind{parts: true, zoned: true})
		units := max(1, int(parts))
		alone := map[string]*roster.View{}
		p.poll.bound, p.poll.up = DefaultProbation, map[identity]time.Duration{}
		p.poll.failed = func(*roster.Member) (bool, roster.Sign) { return true, 0 }
		for range min(int(steps), 60) {
			p.churn()
			for pid, m := range p.here {
				m.Parts = units
				p.here[pid] = m
				p.poll.up[identityOf(&m)] += time.Duration(p.r.IntN(1+60*p.r.IntN(2))) * time.Second
			}
			before := p.view
			p.step()
			byZone := map[string][]*roster.Member{}
			for _, m := range p.view.Members {
				byZone[m.Zone] = append(byZone[m.Zone], m)
			}
			for zone, members := range byZone {
				if alone[zone] == nil {
					alone[zone] = &roster.View{}
				}
				next := &roster.View{Epoch: alone[zone].Epoch + 1, Kind: kind{parts: true}.String(), Units: units}
				for _, m := range members {
					alike := *m
					alike.Given, alike.Kind = roster.Given{}, next.Kind
					next.Members = append(next.Members, &alike)
				}
				past := *alone[zone]
				past.Members = slices.Clone(past.Members)
				for _, m := range before.Members { // how often one failed elsewhere is known here as well
					if _, ok := past.Find(m.PID); !ok {
						elsewhere := *m
						elsewhere.Passive, elsewhere.Slots = true, ""
						past.Members = append(past.Members, &elsewhere)
					}
				}
				p.poll.plan(&past, next)
				alone[zone] = next
				sum, able := 0, false
				for i, m := range members {
					if next.Members[i].Slots != m.Slots && units == p.view.Units {
						t.Fatalf("%s has %q in zone %s, and would have %q without the other zones:\n%+v", m.PID, m.Slots, zone, next.Members[i].Slots, p.view)
					}
					sum += slots(m.Slots).count()
					able = able || !m.Passive && !m.Idle
				}
				if sum != 0 && sum != p.view.Units || able && sum == 0 {
					t.Fatalf("%d partitions of %d in zone %s: %+v", sum, p.view.Units, zone, p.view)
				}
			}
			for zone := range alone {
				if byZone[zone] == nil {
					delete(alone, zone)
				}
			}
		}
	})
}

// Who failed again and again is held back where others of its own zone do the work, and
// nowhere else.
func TestProbationByZone(t *testing.T) {
	k := kind{parts: true, zoned: true}
	line := func(pid, zone string, inc uint64, strikes int) *roster.Member {
		m := &roster.Member{PID: pid, Inc: inc, Ask: roster.Ask{Workers: 1, Kind: k.String(), Parts: 8, Zone: zone}}
		m.Strikes = strikes
		return m
	}
	for held, zone := range map[bool]string{false: "b", true: "a"} {
		before := &roster.View{Epoch: 5, Kind: k.String(), Units: 8, Members: []*roster.Member{line("a", "a", 1, 0)}, Gone: []roster.Departure{{PID: "c", Inc: 2, Failed: true, Strikes: 3}}}
		next := &roster.View{Epoch: 6, Kind: k.String(), Units: 8, Members: []*roster.Member{line("a", "a", 1, 0), line("c", zone, 3, 0)}}
		poll{bound: DefaultProbation, up: map[identity]time.Duration{{"a", 1, 0}: time.Hour}}.plan(before, next)
		c, _ := next.Find("c")
		if got := slots(c.Slots).count(); c.Strikes != 3 || c.Probation != held || got != 8*bit(!held) {
			t.Errorf("in zone %s, beside one in a, c has %d strikes, probation %v and %d partitions", zone, c.Strikes, c.Probation, got)
		}
	}
}

func TestZoneConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no partitions": {PerZone: true, Zone: "a"},
		"no zone":       {PerZone: true, Partitions: 8},
		"not a name":    {PerZone: true, Partitions: 8, Zone: "eu.west"},
		"passive":       {PerZone: true, Partitions: 8, Zone: "eu.west", Passive: true},
	} {
		if _, err := cfg.complete(); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v, want ErrConfig", name, err)
		}
	}
	for name, cfg := range map[string]Config{
		"a name":                  {PerZone: true, Partitions: 8, Zone: "eu-west-1"},
		"passive, without a zone": {PerZone: true, Partitions: 8, Passive: true},
		"spread only":             {Partitions: 8, Zone: "eu.west"},
	} {
		if _, err := cfg.complete(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	keys := map[string]string{}
	for _, zone := range []string{"a", "a-1", "1", "1-1"} {
		for _, i := range []int{0, 1, 11, 1111} {
			key := Config{Group: "g", PerZone: true, Zone: zone}.fenceKey(i)
			if other := keys[key]; other != "" || key == (Config{Group: "g"}).fenceKey(i) {
				t.Errorf("zone %s, partition %d has the fence of %q: %s", zone, i, other, key)
			}
			keys[key] = fmt.Sprint(zone, " ", i)
		}
	}
}

// until waits until ok, asked again whatever changes of m's group: partitions come to a
// strict member after their view.
func (m *seen) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := limit(t, time.Minute)
	for {
		newer := m.state.Load().newer
		if ok() {
			return
		}
		if err := wait(ctx, newer); err != nil {
			t.Fatalf("%s: %s: %v, it has %v and %v", m.node.PID(), what, err, m.Share(), m.Partitions().Mine())
		}
	}
}

// A zoneLog notes who has each partition of each zone, as the callbacks say.
type zoneLog struct {
	t  *testing.T
	mu sync.Mutex // guards by
	by map[string]string
}

func (z *zoneLog) config(cfg Config, pid string) Config {
	cfg.OnAssign = func(_ context.Context, list []int) {
		z.mu.Lock()
		defer z.mu.Unlock()
		for _, i := range list {
			at := fmt.Sprint(cfg.Zone, "/", i)
			if other := z.by[at]; other != "" {
				z.t.Errorf("%s is assigned %s, which is %s's", pid, at, other)
			}
			z.by[at] = pid
		}
	}
	cfg.OnRevoke = func(_ context.Context, list []int) {
		time.Sleep(50 * time.Millisecond) // stopping
		z.mu.Lock()
		defer z.mu.Unlock()
		for _, i := range list {
			delete(z.by, fmt.Sprint(cfg.Zone, "/", i))
		}
	}
	return cfg
}

// Three zones: every partition has one owner in each, strictly. A join in one zone moves
// nothing in the others, a zone that is lost takes nothing with it, and each owner's
// fence is its own.
func TestClusterZones(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		const parts = 12
		z := &zoneLog{t: t, by: map[string]string{}}
		cfg := Config{Partitions: parts, PerZone: true, Mode: StrictIndex, MoveBudget: -1}
		join := func(pid, zone string) *seen {
			c := cfg
			c.Zone = zone
			return in(t, s, pid, z.config(c, pid))
		}
		members := map[string]*seen{"a1": join("a1", "a"), "b1": join("b1", "b"), "c1": join("c1", "c"), "a2": join("a2", "a")}
		observer := in(t, s, "o", Config{Partitions: parts, PerZone: true, Mode: StrictIndex, Passive: true})
		have := func(want map[string]int) {
			t.Helper()
			for pid, n := range want {
				members[pid].until(t, fmt.Sprint(want), func() bool { return len(members[pid].Partitions().Mine()) == n })
			}
			z.mu.Lock()
			defer z.mu.Unlock()
			zones := map[string]int{}
			for _, pid := range z.by {
				zones[string(pid[0])]++
			}
			for zone, n := range zones {
				if n > parts {
					t.Errorf("%d partitions of %d in zone %s", n, parts, zone)
				}
			}
		}
		have(map[string]int{"a1": 6, "a2": 6, "b1": 12, "c1": 12})
		observer.until(t, "all owners", func() bool {
			all := true
			for i := range parts {
				all = all && len(maps.Collect(observer.Partitions().OwnersOf(i))) == 3
			}
			return all && len(observer.Members()) == 5
		})
		key := "customer 17"
		p := observer.Partitions()
		owners := maps.Collect(p.Owners(key))
		if p.Owner(key) != "" || owners["b"] != "b1" || owners["c"] != "c1" || !strings.HasPrefix(string(owners["a"]), "a") {
			t.Errorf("the owners of %q are %v; one without a zone has %q near it", key, owners, p.Owner(key))
		}
		members["a1"].until(t, "the owners", func() bool { return members["a1"].Partitions().Owner(key) == owners["a"] })
		i := p.Of(key)
		for zone, pid := range owners {
			g := members[string(pid)]
			if !g.Partitions().Has(key) || g.Partitions().Owner(key) != pid {
				t.Errorf("%s in %s: Has = %v, Owner = %s", pid, zone, g.Partitions().Has(key), g.Partitions().Owner(key))
			}
			if err := g.Put(limit(t, time.Minute), i, "at-"+zone, []byte(pid)); err != nil {
				t.Errorf("Put of the owner in %s: %v", zone, err)
			}
		}

		// One more in a zone: the other zones are told of nothing but the total.
		before := map[fabric.PID][]int{}
		for _, pid := range []string{"b1", "c1"} {
			before[fabric.PID(pid)] = members[pid].Partitions().Mine()
		}
		members["b2"] = join("b2", "b")
		have(map[string]int{"a1": 6, "a2": 6, "b1": 6, "b2": 6, "c1": 12})
		for _, i := range members["b1"].Partitions().Mine() {
			if !slices.Contains(before["b1"], i) {
				t.Errorf("b1 got %d, which it did not have", i)
			}
		}
		// A zone goes, one of its members with a crash.
		members["a1"].link.Cut()
		withdraw(t, members["a2"])
		observer.until(t, "two zones", func() bool {
			return len(maps.Collect(observer.Partitions().Owners(key))) == 2 && len(observer.Members()) == 4
		})
		members["a1"].link.Heal()
		have(map[string]int{"b1": 6, "b2": 6, "c1": 12, "a1": 12}) // and comes back
		delete(members, "a2")
		for _, m := range members {
			withdraw(t, m)
		}
		withdraw(t, observer)
	})
}

package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/natsfabric/natsfabric/internal/roster"
)

// A planner takes views from plan to plan, with members that come, go, change their
// minds, give up what was taken and die.
type planner struct {
	t    *testing.T
	r    *rand.Rand
	k    kind
	view *roster.View
	here map[string]roster.Member
	poll poll
	inc  uint64
}

func newPlanner(t *testing.T, seed uint64, k kind) *planner {
	return &planner{
		t: t, r: rand.New(rand.NewPCG(seed, 3)), k: k, view: &roster.View{}, here: map[string]roster.Member{},
		poll: poll{acked: map[identity]uint64{}, ended: map[identity]bool{}},
	}
}

// churn changes one thing.
func (p *planner) churn() {
	pid := fmt.Sprint("m", p.r.IntN(6))
	m, ok := p.here[pid]
	switch {
	case !ok:
		p.inc++
		p.here[pid] = roster.Member{PID: pid, Inc: p.inc, Ask: roster.Ask{
			Passive: p.r.IntN(6) == 0, Workers: 1 + p.r.IntN(3), Stay: p.r.Uint64(), Kind: p.k.String(), Parts: 16 << p.r.IntN(2) * bit(p.k.parts), Zone: fmt.Sprint("z", p.r.IntN(3)),
		}}
		if m = p.here[pid]; m.Passive { // it does not matter what it thinks
			m.Kind, m.Parts = kinds[p.r.IntN(len(kinds))].String(), 48
			p.here[pid] = m
		}
		return
	case p.r.IntN(3) == 0:
		delete(p.here, pid)
		return
	case p.r.IntN(5) == 0: // restarted at once, elsewhere
		p.inc++
		m.Inc, m.Stay, m.Zone = p.inc, p.r.Uint64(), fmt.Sprint("z", p.r.IntN(3))
	case p.r.IntN(8) == 0: // a record that is not ours
		m.Zone = "elsewhere"
	case p.r.IntN(2) == 0:
		m.Workers = 1 + p.r.IntN(4)
	default:
		m.Idle = !m.Idle
	}
	p.here[pid] = m
}

func bit(v bool) int {
	if v {
		return 1
	}
	return 0
}

// learn lets the coordinator learn of some of the memberships that are over, and some
// members give up what was taken from them; all of them if all is set.
func (p *planner) learn(all bool) {
	for _, m := range p.view.Members {
		id := identityOf(m)
		if now, ok := p.here[m.PID]; (!ok || identityOf(&now) != id) && (all || p.r.IntN(3) == 0) {
			p.poll.ended[id] = true
		}
		if all || p.r.IntN(2) == 0 {
			p.poll.acked[id] = p.view.Epoch
		}
	}
}

// step plans the next view, checks it, and reports whether it changes anything.
func (p *planner) step() (changed bool) {
	p.t.Helper()
	next := &roster.View{Epoch: p.view.Epoch + 1, Kind: p.view.Kind, Units: p.view.Units}
	for _, m := range p.here {
		next.Members = append(next.Members, &m)
	}
	p.r.Shuffle(len(next.Members), func(i, j int) {
		next.Members[i], next.Members[j] = next.Members[j], next.Members[i]
	})
	p.poll.plan(p.view, next)
	slices.SortFunc(next.Members, func(a, b *roster.Member) int { return strings.Compare(a.PID, b.PID) }) // as the roster does
	p.check(next)
	changed = next.Units != p.view.Units || next.Kind != p.view.Kind || !slices.EqualFunc(p.view.Members, next.Members, func(a, b *roster.Member) bool {
		return identityOf(a) == identityOf(b) && a.Ask == b.Ask && a.Given == b.Given
	})
	if changed {
		p.view = next
	}
	return changed
}

// check checks that nothing is two members', and that nobody gets what another may
// still hold.
func (p *planner) check(next *roster.View) {
	p.t.Helper()
	type place struct { // what nobody shares
		zone string
		i    int
	}
	holder := map[place]identity{}
	for _, m := range next.Members {
		if !m.Passive && m.Kind == p.k.String() && next.Kind != m.Kind {
			p.t.Fatalf("the kind is %q, of %+v", next.Kind, next)
		}
	}
	for _, m := range next.Members {
		for i := range slots(m.Slots).and(slots(m.Going)).all() {
			at := place{p.k.zone(m), i}
			if other, ok := holder[at]; ok {
				p.t.Fatalf("%d is %v's and %v's in %+v", i, other, identityOf(m), next)
			}
			holder[at] = identityOf(m)
		}
		if slots(m.Slots).both(slots(m.Going)) != "" || m.Mark > next.Epoch {
			p.t.Fatalf("%+v has what it is giving up", m)
		}
	}
	if !p.k.strict() {
		return
	}
	for _, m := range p.view.Members {
		id := identityOf(m)
		free := p.poll.ended[id]
		for i := range slots(m.Slots).and(slots(m.Going)).all() {
			given := slots(m.Going).has(i) && p.poll.acked[id] >= m.Mark
			if now := holder[place{p.k.zone(m), i}]; now != id && !free && !given {
				p.t.Fatalf("%d was %v's, who may have it still, and is %v's:\n%+v\n%+v", i, id, now, p.view, next)
			}
		}
	}
}

// FuzzPlan: whatever happens, in whatever order it is learned, nothing is given to two,
// or taken from one who may still hold it; and when nothing happens any more, everybody
// has what it asked for.
func FuzzPlan(f *testing.F) {
	for i := range kinds {
		f.Add(uint64(i), uint8(i), 60)
	}
	f.Add(uint64(103), uint8('9'), 60) // in the end all are passive
	f.Fuzz(func(t *testing.T, seed uint64, which uint8, steps int) {
		k := kinds[int(which)%len(kinds)]
		p := newPlanner(t, seed, k)
		for range min(max(steps, 0), 80) {
			p.churn()
			p.learn(false)
			p.step()
		}
		rounds := 0
		for p.step() || rounds < 3 {
			p.learn(true)
			if rounds++; rounds > 20 {
				t.Fatalf("it does not come to rest: %+v", p.view)
			}
		}
		want, placed, zones := 0, map[string]int{}, map[string]int{}
		for _, m := range p.here {
			if !m.Idle && !m.Passive {
				want += m.Workers
			}
		}
		for _, m := range p.view.Members {
			if m.Going != "" || len(p.view.Members) != len(p.here) {
				t.Fatalf("at rest, and still: %+v", p.view)
			}
			placed[m.PID] = slots(m.Slots).count()
			if m.Refused {
				t.Fatalf("%s is refused: %+v", m.PID, p.view)
			}
			if !m.Idle && !m.Passive {
				zones[k.zone(m)] += slots(m.Slots).count()
			}
		}
		for zone, n := range zones {
			if k.parts && n != p.view.Units {
				t.Errorf("in zone %q there are %d partitions of %d", zone, n, p.view.Units)
			}
		}
		for pid, m := range p.here {
			if n := placed[pid]; (k.granted() && n != m.Workers*bit(!m.Idle && !m.Passive)) || k.parts && m.Idle && n > 0 {
				t.Errorf("%s asked for %d (idle: %v) and has %d", pid, m.Workers, m.Idle, n)
			}
		}
		if k.granted() && p.view.Kind == k.String() && p.view.Units != want {
			t.Errorf("the total is %d, want %d", p.view.Units, want)
		}
	})
}

// The plan does not depend on the order in which members are counted.
func TestPlanOrder(t *testing.T) {
	for _, k := range kinds {
		a, b := newPlanner(t, 1, k), newPlanner(t, 1, k)
		for range 30 {
			a.churn()
			b.here, b.poll = a.here, a.poll
			a.step()
			b.r.Uint64()
			b.step()
			if !slices.EqualFunc(a.view.Members, b.view.Members, func(x, y *roster.Member) bool { return x.PID == y.PID && x.Given == y.Given }) {
				t.Fatalf("kind %q: %+v and %+v", k, a.view, b.view)
			}
			a.learn(false)
		}
	}
}

// A number of partitions that no group can have is nobody's wish, whether a member says so
// or a view that is there.
func TestPlanUnits(t *testing.T) {
	for _, k := range []kind{{parts: true}, {parts: true, mode: StrictIndex}, {parts: true, zoned: true}} {
		for _, wrong := range []int{MaxPartitions + 1, 1 << 40, 0, -8} {
			line := func(pid string, inc uint64, parts int) *roster.Member {
				return &roster.Member{PID: pid, Inc: inc, Ask: roster.Ask{Workers: 1, Kind: k.String(), Parts: parts}}
			}
			for _, before := range []*roster.View{
				{}, {Epoch: 1, Kind: k.String(), Units: wrong, Members: []*roster.Member{line("a", 1, wrong)}},
			} {
				next := &roster.View{Epoch: before.Epoch + 1, Kind: before.Kind, Units: before.Units, Members: []*roster.Member{line("a", 1, wrong), line("b", 2, 8)}}
				poll{}.plan(before, next)
				var all slots
				for _, m := range next.Members {
					all = all.and(slots(m.Slots))
				}
				if next.Units != 8 || all != "0-7" {
					t.Errorf("kind %q, %d after %d: %d partitions, %q of them given", k, wrong, before.Units, next.Units, all)
				}
			}
		}
	}
}

package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

func TestProbation(t *testing.T) {
	for _, tt := range []struct {
		strikes int
		bound   time.Duration
		want    time.Duration
	}{
		{0, DefaultProbation, 0}, {2, DefaultProbation, 0}, {3, DefaultProbation, time.Second}, {4, DefaultProbation, 2 * time.Second},
		{7, DefaultProbation, 16 * time.Second}, {8, DefaultProbation, 30 * time.Second}, {maxStrikes, MaxProbation, MaxProbation},
		{3, 500 * time.Millisecond, 500 * time.Millisecond}, {9, -1, 0}, {9, 0, 0}, {-1, DefaultProbation, 0},
	} {
		if got := (poll{bound: tt.bound}).probation(tt.strikes); got != tt.want {
			t.Errorf("probation(%d), at most %v = %v, want %v", tt.strikes, tt.bound, got, tt.want)
		}
	}
}

// A probationer drives plans with members that come, crash, leave and are left alone,
// and keeps account of what they have deserved.
type probationer struct {
	t     *testing.T
	k     kind
	view  *roster.View
	here  map[string]roster.Member
	fails map[string]int // in a row, by PID, those that changed something for others
	up    map[string]time.Duration
	ended map[identity]bool // whether it failed
	kept  map[identity]bool
	inc   uint64
}

func (p *probationer) join(pid string) {
	p.inc++
	p.here[pid] = roster.Member{PID: pid, Inc: p.inc, Ask: roster.Ask{Workers: 1, Stay: p.inc, Kind: p.k.String()}}
	p.up[pid] = 0
}

func (p *probationer) end(pid string, failed, kept bool) {
	m := p.here[pid]
	p.ended[identityOf(&m)], p.kept[identityOf(&m)] = failed, kept
	delete(p.here, pid)
	switch {
	case !failed:
		p.fails[pid] = 0
	case !kept:
		p.fails[pid]++
	}
	if kept {
		p.join(pid)
	}
}

// step plans and writes the next view, and checks it.
func (p *probationer) step() {
	p.t.Helper()
	po := poll{
		acked: map[identity]uint64{}, ended: map[identity]bool{}, kept: p.kept, bound: DefaultProbation, up: map[identity]time.Duration{},
		failed: func(m *roster.Member) (bool, roster.Sign) { return p.ended[identityOf(m)], 0 },
	}
	for id := range p.ended {
		po.ended[id] = true
	}
	next := &roster.View{Epoch: p.view.Epoch + 1, Kind: p.view.Kind, Units: p.view.Units}
	for _, pid := range slices.Sorted(func(yield func(string) bool) {
		for pid := range p.here {
			if !yield(pid) {
				return
			}
		}
	}) {
		m := p.here[pid]
		next.Members = append(next.Members, &m)
		po.up[identityOf(&m)] = p.up[pid]
	}
	po.plan(p.view, next)
	next.Gone = slices.Clone(p.view.Gone)
	for _, old := range p.view.Members {
		if m, ok := next.Find(old.PID); !ok || m.Inc != old.Inc {
			next.Gone = append(next.Gone, po.depart(old))
		}
	}
	p.check(next)
	again := &roster.View{Epoch: next.Epoch + 1, Kind: next.Kind, Units: next.Units}
	for _, m := range next.Members {
		bare := *m
		bare.Given = roster.Given{}
		again.Members = append(again.Members, &bare)
	}
	po.plan(next, again)
	for i, m := range again.Members {
		if o := next.Members[i]; m.Strikes != o.Strikes || m.Probation != o.Probation {
			p.t.Fatalf("planned again %+v becomes %+v", o, m)
		}
	}
	p.view = next
}

func (p *probationer) check(next *roster.View) {
	p.t.Helper()
	work, held := 0, 0
	for _, m := range next.Members {
		up, fails := p.up[m.PID], min(p.fails[m.PID], maxStrikes)
		wait := (poll{bound: DefaultProbation}).probation(fails)
		if up >= wait+calm {
			fails, p.fails[m.PID] = 0, 0
		}
		if m.Strikes != fails {
			p.t.Fatalf("%s failed %d times in a row and has %d strikes, after %v: %+v", m.PID, fails, m.Strikes, up, next)
		}
		old, ok := p.view.Find(m.PID)
		goesOn := ok && (identityOf(old) == identityOf(m) || p.kept[identityOf(old)])
		switch {
		case m.Probation && fails < flapping:
			p.t.Fatalf("%s is on probation after %d failures", m.PID, fails)
		case m.Probation && up >= DefaultProbation:
			p.t.Fatalf("%s is on probation after %v", m.PID, up)
		case m.Probation && goesOn && !old.Probation:
			p.t.Fatalf("%s was admitted and is on probation", m.PID)
		case m.Probation && wantOf(m).granted() > 0:
			p.t.Fatalf("%s is on probation and gets something", m.PID)
		}
		if m.Probation {
			held++
		} else {
			work++
		}
	}
	for _, m := range next.Members { // held back as long as it must be
		old, ok := p.view.Find(m.PID)
		fresh := !ok || identityOf(old) != identityOf(m) && !p.kept[identityOf(old)]
		if wait := (poll{bound: DefaultProbation}).probation(m.Strikes); fresh && !m.Probation && p.up[m.PID] < wait && work > len(next.Members)-held {
			p.t.Fatalf("%s with %d strikes is admitted at once: %+v", m.PID, m.Strikes, next)
		}
	}
	if work == 0 && held > 0 {
		p.t.Fatalf("nobody does the work: %+v", next)
	}
}

// FuzzProbation: strikes are the failures in a row that anybody has noticed, whichever
// coordinator counts; who has three is held back for its time and no longer, unless there
// is nobody else; who was admitted stays so.
func FuzzProbation(f *testing.F) {
	for i := range 8 {
		f.Add(uint64(i), uint8(i), 200)
	}
	f.Fuzz(func(t *testing.T, seed uint64, which uint8, steps int) {
		r := rand.New(rand.NewPCG(seed, 5))
		ks := []kind{{}, {sticky: true}, {mode: StrictIndex}, {parts: true}}
		p := &probationer{
			t: t, k: ks[int(which)%len(ks)], view: &roster.View{}, here: map[string]roster.Member{}, fails: map[string]int{},
			up: map[string]time.Duration{}, ended: map[identity]bool{}, kept: map[identity]bool{},
		}
		for range min(max(steps, 0), 300) {
			pid := fmt.Sprint("m", r.IntN(4))
			switch _, here := p.here[pid]; {
			case !here:
				p.join(pid)
			case r.IntN(40) == 0: // another coordinator has seen nobody yet
				for pid := range p.up {
					p.up[pid] = 0
				}
			case r.IntN(3) == 0:
				wait := time.Duration(r.IntN(3000)) * time.Millisecond
				if r.IntN(6) == 0 {
					wait = time.Duration(r.IntN(120)) * time.Second
				}
				for pid := range p.up {
					p.up[pid] += wait
				}
			default:
				p.end(pid, r.IntN(12) > 0, r.IntN(5) == 0)
			}
			p.step()
		}
	})
}

// standing returns how o stands, as m sees it.
func (m *seen) standing(pid string) string {
	for _, p := range m.Members() {
		if string(p.PID) == pid {
			return p.Standing.String()
		}
	}
	return "no member"
}

// A member that crashes again and again is admitted later each time, also by the next
// coordinator, until it has been up for a while. Who leaves, or whose place is kept, is
// never held back.
func TestClusterProbation(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := in(t, s, "a", Config{}), in(t, s, "b", Config{})
		c := in(t, s, "c", Config{Workers: 2})
		var over []*seen
		crash := func() {
			t.Helper()
			c.link.Cut()
			over = append(over, c)                // its node finds that out at the end
			c = in(t, s, "c", Config{Workers: 2}) // waits for the lease
		}
		for i := range 2 {
			crash()
			if got := c.Share(); got.First != 2 {
				t.Errorf("c has %v after %d crashes", got, i+1)
			}
		}
		held := func(want time.Duration, total int, others *seen) {
			t.Helper()
			if got := c.Share(); got.First != -1 {
				t.Errorf("c has %v, and is to be on probation", got)
			}
			c.awaitShare(t, time.Minute, -1, 0, total)
			others.await(t, "a probation", func() bool { return others.standing("c") == "probation" })
			if got := c.standing("c"); got != "probation" {
				t.Errorf("c sees that it is %q", got)
			}
			took := c.awaitShare(t, time.Minute, total, 2, total+2)
			if most := want + time.Second; took < want-2*DefaultSettle || took > most {
				t.Errorf("c is admitted after %v, want %v", took, want)
			}
			others.awaitShare(t, time.Minute, total-1, 1, total+2)
			if got := others.standing("c"); got != "active" {
				t.Errorf("c has its indices and is %q", got)
			}
		}
		crash()
		held(time.Second, 2, b)
		crash()
		// The coordinator goes: the next one knows of it from the view.
		if err := a.node.Leave(limit(t, time.Minute)); err != nil {
			t.Error(err)
		}
		b.awaitShare(t, time.Minute, 0, 1, 1)
		held(2*time.Second, 1, b)
		time.Sleep(calm + 5*time.Second)
		crash()
		if got := c.Share(); got.First < 0 {
			t.Errorf("c crashed once after a quiet minute and has %v", got)
		}
		for _, m := range over {
			m.link.Heal()
			<-m.Context().Done()
		}
		for range 6 { // restarts
			if err := c.node.Leave(limit(t, time.Minute)); err != nil {
				t.Error(err)
			}
			if c = in(t, s, "c", Config{Workers: 2}); c.Share().First < 0 {
				t.Fatalf("c left, came back and has %v", c.Share())
			}
		}
		withdraw(t, c)
		withdraw(t, b)
	})
}

// With Rejoin a crash changes nothing for anybody: it is no reason to hold a member back.
func TestClusterProbationKnowsRejoin(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := in(t, s, "a", Config{})
		b := in(t, s, "b", Config{Rejoin: time.Minute})
		a.awaitShare(t, time.Minute, 0, 1, 2)
		for range 5 {
			old := b
			old.link.Cut()
			b = in(t, s, "b", Config{Rejoin: time.Minute})
			old.link.Heal()
			<-old.Context().Done()
			if got := b.Share(); got.First != 1 {
				t.Fatalf("b has %v", got)
			}
		}
		if n := len(a.told()); n > 2 {
			t.Errorf("a was told %v", a.told())
		}
		for _, m := range a.Members() {
			if m.Standing != Active {
				t.Errorf("%s is %v", m.PID, m.Standing)
			}
		}
		withdraw(t, a)
		withdraw(t, b)
	})
}

// Probation that is off holds nobody back.
func TestClusterProbationOff(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := in(t, s, "a", Config{Probation: -1}), in(t, s, "b", Config{Probation: -1})
		for range 5 {
			old := b
			old.link.Cut()
			b = in(t, s, "b", Config{Probation: -1})
			old.link.Heal()
			<-old.Context().Done()
			if got := b.Share(); got.First != 1 {
				t.Fatalf("b has %v", got)
			}
		}
		withdraw(t, a)
		withdraw(t, b)
	})
}

// In a strict mode, and with partitions, it is the same: others have the work meanwhile.
func TestClusterProbationStrict(t *testing.T) {
	for _, cfg := range []Config{{Mode: StrictIndex}, {Mode: StrictIndex, Partitions: 16, MoveBudget: -1}} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			units := func(m *seen) int { return m.state.Load().units().count() }
			all := max(cfg.Partitions, 2) // of two members
			a, b := in(t, s, "a", cfg), in(t, s, "b", cfg)
			var over []*seen
			for range flapping {
				b.until(t, "its half", func() bool { return units(b) == all/2 })
				b.link.Cut()
				over = append(over, b)
				b = in(t, s, "b", cfg)
			}
			if got := b.standing("b"); got != "probation" || units(b) != 0 {
				t.Errorf("b is %q and has %d", got, units(b))
			}
			began := time.Now()
			if cfg.Partitions > 0 {
				a.until(t, "all of them", func() bool { return units(a) == all })
			}
			b.until(t, "its half", func() bool { return units(b) == all/2 })
			if took := time.Since(began); took < firstProbation-2*DefaultSettle || took > firstProbation+time.Second {
				t.Errorf("b was admitted after %v, want %v", took, firstProbation)
			}
			for _, m := range over {
				m.link.Heal()
				<-m.Context().Done()
			}
			withdraw(t, b)
			withdraw(t, a)
		})
	}
}

package balance

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/natsfabric/natsfabric/internal/roster"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

var (
	simRebalances = flag.Int("sim.rebalances", natstest.Fewer(50_000), "views that TestStrictSimulation lets the coordinators write")
	simSeed       = flag.Uint64("sim.seed", 0, "seed of TestStrictSimulation; 0 is a new one")
)

// A sabotage leaves out one thing that the strict protocol needs.
type sabotage struct{ barrier, renewal, incarnation, margin bool }

// Times of the simulation, in microseconds. The rates of two clocks differ by up to
// twice simRate.
const (
	simLease  = 1_000_000
	simRenew  = simLease * 3 / 8
	simHealed = 2 * simLease // one, and the grace of a coordinator that is new
	simRate   = 0.005
	simLook   = 150_000 // how often a coordinator and a standby read
	simFollow = 700_000 // how often a follower reads the view
)

// A sim is the store, the network, the clocks and the processes.
type sim struct {
	r      *rand.Rand
	broken sabotage
	now    int64
	queue  events
	order  uint64
	calm   bool // no faults any more

	rev    uint64
	claims map[string]simClaim   // c.p.<pid>
	alive  map[string]simSession // s.<pid>
	wishes map[string]simWish    // g.<group>.<pid>
	chair  simClaim              // c.r.<roster>; its rev is the token
	view   *roster.View          // v.<roster>
	viewAt uint64                // its revision

	procs      []*simProc
	rebalances int
	doubles    []string
	stays      uint64
	totals     map[uint64]int // of the views, by epoch
	mode       Mode
	kind       string
}

type simClaim struct {
	rev  uint64
	held bool
	pid  string // of chair
	inc  uint64 // of chair
}

type simSession struct{ rev, inc uint64 }

type simWish struct {
	rev     uint64
	id      identity
	acked   uint64
	workers int
	gone    bool
}

// A simProc is one process under one PID, over and over.
type simProc struct {
	s       *sim
	pid     string
	rate    float64
	life    int      // events of former lives are void
	paused  int64    // until then
	waiting []func() // for that
	cut     int64    // until then nothing goes out or comes in
	inc     uint64
	stay    uint64
	workers int
	trusted int64 // real time until which it trusts its lease, by its own clock
	keeper  keeper
	token   uint64 // of the newest view it has seen
	acking  uint64

	lead  uint64 // token of the chair, 0 if it does not coordinate
	vigil map[string]simVigil
	busy  bool // a view is being written
	// What it knows as a coordinator, perhaps outdated.
	claims map[string]simClaim
	wishes map[string]simWish
}

type simVigil struct {
	rev   uint64
	since int64
}

type event struct {
	at    int64
	order uint64
	f     func()
}

func (e event) before(o event) bool { return e.at < o.at || e.at == o.at && e.order < o.order }

// events are a heap.
type events []event

func (q *events) push(e event) {
	h := append(*q, e)
	for i := len(h) - 1; i > 0 && h[i].before(h[(i-1)/2]); i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
	*q = h
}

func (q *events) pop() event {
	h := *q
	first, last := h[0], len(h)-1
	h[0], h[last] = h[last], event{}
	h = h[:last]
	for i := 0; 2*i+1 < last; {
		c := 2*i + 1
		if c+1 < last && h[c+1].before(h[c]) {
			c++
		}
		if !h[c].before(h[i]) {
			break
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
	*q = h
	return first
}

func (s *sim) after(d int64, f func()) {
	s.order++
	s.queue.push(event{s.now + d, s.order, f})
}

// delay is how long a message takes: mostly little, sometimes long.
func (s *sim) delay() int64 {
	if s.r.IntN(10) == 0 && !s.calm {
		return s.r.Int64N(200_000)
	}
	return 200 + s.r.Int64N(1500)
}

// do runs f in the process after d of its own time, if it still lives then; a process
// that is stopped does it when it goes on.
func (p *simProc) do(d int64, f func()) {
	life := p.life
	var run func()
	run = func() {
		switch {
		case p.life != life:
		case p.paused > p.s.now:
			p.waiting = append(p.waiting, run)
		default:
			f()
		}
	}
	p.s.after(int64(float64(d)/p.rate), run)
}

// resume lets the process do what it would have done, unless it is still stopped.
func (p *simProc) resume() {
	if p.paused > p.s.now {
		return
	}
	p.s.check(p) // the first thing it does may be to act
	waiting := p.waiting
	p.waiting = nil
	for _, run := range waiting {
		run()
	}
}

// ask lets f run at the store and answer with what it returns, each over the network:
// either way may be lost.
func (p *simProc) ask(f func() bool, answer func(ok bool)) {
	s := p.s
	if p.cut > s.now || !s.calm && s.r.IntN(40) == 0 {
		return
	}
	s.after(s.delay(), func() {
		ok := f()
		if p.cut > s.now || !s.calm && s.r.IntN(40) == 0 {
			return
		}
		p.do(s.delay(), func() { answer(ok) })
	})
}

// patience and trust are those of internal/lease.
func (s *sim) patience() float64 {
	if s.broken.margin {
		return simLease
	}
	return simLease*1.01 + 5000
}

func (s *sim) trust() float64 {
	if s.broken.margin {
		return simLease
	}
	return simLease - simLease/20
}

// acts reports whether the process acts on what it holds at this moment.
func (p *simProc) acts() bool { return p.inc != 0 && p.paused <= p.s.now && p.s.now < p.trusted }

// check notes whether something that p holds is another's as well.
func (s *sim) check(p *simProc) {
	if !p.acts() || p.keeper.held == "" {
		return
	}
	for _, o := range s.procs {
		if o == p || !o.acts() || o.keeper.held == "" {
			continue
		}
		if both := p.keeper.held.both(o.keeper.held); both != "" {
			s.doubles = append(s.doubles, fmt.Sprintf("at %d %s and %s both hold %s", s.now, p.pid, o.pid, both))
		}
		if s.mode == StrictEpoch && p.keeper.epoch != o.keeper.epoch && len(s.doubles) == 0 {
			if s.totals[p.keeper.epoch] != s.totals[o.keeper.epoch] {
				s.doubles = append(s.doubles, fmt.Sprintf("at %d %s acts on a total of %d, %s of %d", s.now, p.pid, s.totals[p.keeper.epoch], o.pid, s.totals[o.keeper.epoch]))
			}
		}
	}
}

// fault lets something go wrong, over and over.
func (s *sim) fault() {
	s.after(s.r.Int64N(700_000), s.fault)
	if s.calm {
		return
	}
	p := s.procs[s.r.IntN(len(s.procs))]
	length := 200_000 + s.r.Int64N(2_800_000)
	switch s.r.IntN(4) {
	case 0, 1:
		p.cut = s.now + length
	case 2:
		p.paused = s.now + length
		s.after(length, p.resume)
	case 3:
		p.start()
	}
}

func newSim(seed uint64, broken sabotage, k kind) *sim {
	s := &sim{
		r: rand.New(rand.NewPCG(seed, 11)), broken: broken, rev: 100, mode: k.mode, kind: k.String(),
		claims: map[string]simClaim{}, alive: map[string]simSession{}, wishes: map[string]simWish{},
		view: &roster.View{}, viewAt: 1, totals: map[uint64]int{},
	}
	for i := range 5 {
		p := &simProc{s: s, pid: fmt.Sprint("p", i), rate: 1 + simRate*(2*s.r.Float64()-1)}
		if i < 2 {
			p.rate = 1 + simRate*float64(2*i-1) // one of the slowest and one of the fastest
		}
		s.procs = append(s.procs, p)
		p.start()
	}
	s.fault()
	return s
}

// run runs the simulation until so many views are written, or a double hold was seen;
// it reports false if that takes more than five seconds for each view.
func (s *sim) run(rebalances int) bool {
	for s.rebalances < rebalances && len(s.doubles) == 0 {
		if s.now > 5_000_000*int64(s.rebalances+20) {
			return false
		}
		s.next()
	}
	return true
}

func (s *sim) next() {
	e := s.queue.pop()
	s.now = e.at
	e.f()
}

// heal ends all faults, and returns how long it took until everything that is wanted
// is held, and was for a second.
func (s *sim) heal(limit int64) (took int64, ok bool) {
	s.calm = true
	for _, p := range s.procs {
		p.cut, p.paused = 0, 0
		p.resume()
	}
	began, good := s.now, int64(-1)
	for s.now < began+limit {
		s.next()
		want, held := 0, 0
		for _, p := range s.procs {
			want += p.workers
			if p.acts() {
				held += p.keeper.held.count()
			}
		}
		switch {
		case want != held || s.view.Units != want:
			good = -1
		case good < 0:
			good = s.now
		case s.now > good+1_000_000:
			return good - began, true
		}
	}
	return 0, false
}

// TestStrictSimulation runs the coordinator's plan and the member's keeper over a
// store, a network and clocks that do what they can: nothing is ever held by two, and
// when the faults end everything is held again.
func TestStrictSimulation(t *testing.T) {
	t.Parallel()
	seed := *simSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-sim.seed %d", seed)
	ks := []kind{{mode: StrictIndex}, {sticky: true, mode: StrictIndex}, {mode: StrictEpoch}, {sticky: true, mode: StrictEpoch}}
	const runs = 24
	total, longest := 0, int64(0)
	for i := range uint64(runs) {
		s := newSim(seed+i, sabotage{}, ks[i%uint64(len(ks))])
		if !s.run((*simRebalances + runs - 1) / runs) {
			t.Fatalf("run %d, kind %s: %d views in %d s\n%s", i, s.kind, s.rebalances, s.now/1_000_000, s.dump())
		}
		if len(s.doubles) > 0 {
			t.Fatalf("run %d, kind %s, after %d views: %s", i, s.kind, s.rebalances, s.doubles[0])
		}
		total += s.rebalances
		took, ok := s.heal(60_000_000)
		if !ok {
			t.Fatalf("run %d, kind %s: a minute after the last fault not everything is held\n%s", i, s.kind, s.dump())
		}
		if took > simHealed {
			t.Errorf("run %d, kind %s: everything is held %d ms after the last fault, want after %d ms", i, s.kind, took/1000, simHealed/1000)
		}
		if len(s.doubles) > 0 {
			t.Fatalf("run %d, kind %s, healing: %s", i, s.kind, s.doubles[0])
		}
		longest = max(longest, took)
	}
	t.Logf("%d rebalances, nothing held twice; everything held again after at most %d ms, with a lease of %d ms", total, longest/1000, simLease/1000)
}

func (s *sim) dump() string {
	var text strings.Builder
	text.WriteString(fmt.Sprintf("view %+v\n", *s.view))
	for _, p := range s.procs {
		text.WriteString(fmt.Sprintf("%s inc %d stay %d workers %d acts %v lead %d keeper %+v wish %+v claim %+v\n", p.pid, p.inc, p.stay, p.workers, p.acts(), p.lead, p.keeper, s.wishes[p.pid], s.claims[p.pid]))
	}
	return text.String()
}

// Each of the four is needed: the simulation finds out that it is missing.
func TestStrictSimulationNoticesWhatIsMissing(t *testing.T) {
	for name, broken := range map[string]sabotage{
		"barrier": {barrier: true}, "renewal guard": {renewal: true},
		"incarnation": {incarnation: true}, "lease margin": {margin: true},
	} {
		t.Run(name, func(t *testing.T) {
			total := 0
			for i := range uint64(400) {
				s := newSim(i+1, broken, kind{sticky: i%2 == 0, mode: StrictIndex})
				if !s.run(1000) {
					continue // what is missing may also stop it
				}
				if total += s.rebalances; len(s.doubles) > 0 {
					t.Logf("found after %d rebalances: %s", total, s.doubles[0])
					return
				}
			}
			t.Errorf("%d rebalances without the %s, and nothing was held twice", total, name)
		})
	}
}

package lease_test

import (
	"context"
	"flag"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

var (
	simFaults = flag.Int("sim.faults", natstest.Fewer(50_000), "faults of TestSimulation")
	simSeed   = flag.Uint64("sim.seed", 0, "first seed of TestSimulation; 0 is a new one")
	simLog    = flag.Bool("sim.log", false, "let the sessions of TestSimulation log to stderr")
)

// simRound is how many faults one world sees.
const simRound = 10_000

// TestSimulation runs sessions, claims and what is kept under them against a simulated
// server, whose messages are lost, late, repeated and reordered, which answers from the
// past, forgets records, is away, or goes back in time; and on machines that are
// suspended, cut off and crash. What the stream takes and what processes believe is
// checked: truth, natstest.CheckBeliefs.
//
//	go test ./internal/lease -run TestSimulation -sim.faults 1000000 -v -timeout 60m
func TestSimulation(t *testing.T) {
	seed := *simSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed: -sim.seed %d", seed)
	var all simResult
	for left := *simFaults; left > 0 && !t.Failed(); seed++ {
		r := simulate(t, seed, min(left, simRound))
		left -= r.faults
		all.add(r)
	}
	t.Logf("%+v", all)
	per := func(n, every int) bool { return n >= all.faults/every }
	if !per(all.terms, 40) || !per(all.joins, 500) || !per(all.lost, 400) || !per(all.observed, 40) {
		t.Errorf("too little happened for the test to mean anything: %+v", all)
	}
}

// A simResult is what happened in simulations.
type simResult struct {
	faults, terms, joins, lost, observed int
	time                                 time.Duration
	kinds                                map[string]int
	ends                                 map[string]int
}

func (r *simResult) add(o simResult) {
	r.faults, r.terms, r.joins, r.time = r.faults+o.faults, r.terms+o.terms, r.joins+o.joins, r.time+o.time
	r.lost, r.observed = r.lost+o.lost, r.observed+o.observed
	sum := func(into *map[string]int, from map[string]int) {
		if *into == nil {
			*into = map[string]int{}
		}
		for k, n := range from {
			(*into)[k] += n
		}
	}
	sum(&r.kinds, o.kinds)
	sum(&r.ends, o.ends)
}

// simulate runs one world until it has seen that many faults.
func simulate(t *testing.T, seed uint64, faults int) (result simResult) {
	natstest.FakeTime(t, func(t *testing.T) {
		s := newSimServer(seed)
		defer s.close()
		w := &simWorld{
			t: t, s: s, rand: rand.New(rand.NewPCG(seed, 2)), procs: make([]*simProc, simCandidates),
			history: map[string][]natstest.Belief{}, ends: map[string]int{}, seen: map[string][]lease.Holder{},
		}
		began := time.Now()
		w.first()
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range simCandidates {
			w.procs[i] = &simProc{way: s.way(), crash: func() {}}
			wg.Go(func() { w.live(ctx, i, rand.New(rand.NewPCG(seed, uint64(i+3)))) })
		}
		leave := w.observer(ctx, &wg)
		healed := w.nemesis(faults)
		for _, name := range simClaims {
			w.checkSeen(name)
		}
		stop()
		wg.Wait()
		leave()
		for name, history := range w.history {
			for _, wrong := range append(natstest.CheckBeliefs(history), natstest.Leaderless(history, healed, leaderBound)...) {
				t.Errorf("seed %d: %s: %s", seed, name, wrong)
			}
			result.terms += len(history)
		}
		for i, wrong := range s.truth.wrong {
			if i < 10 {
				t.Errorf("seed %d: %s", seed, wrong)
			}
		}
		result.faults, result.joins, result.kinds, result.ends = s.struck(), w.joins, s.faults, w.ends
		result.lost, result.observed, result.time = w.ends["lost"], w.observed, time.Since(began)
	})
	return result
}

// first opens the bucket with the longest lease, so that every process may have it.
func (w *simWorld) first() {
	nc, err := w.connect(w.s.way())
	if err != nil {
		w.t.Fatal(err)
	}
	defer nc.Close()
	if err := w.bucket(nc, simLongest, simLogger("first")).Open(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// observer follows the claims over a way of its own, which has no faults but those of
// the feed and the reads. The function that it returns ends it, after ctx.
func (w *simWorld) observer(ctx context.Context, wg *sync.WaitGroup) (leave func()) {
	nc, err := w.connect(w.s.way())
	if err != nil {
		w.t.Fatal(err)
	}
	b := w.bucket(nc, simLongest, simLogger("observer"))
	s, err := lease.Start(ctx, b, lease.Config{PID: "observer", Passive: true, Logger: simLogger("observer")})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range simClaims {
		wg.Go(func() { w.observe(ctx, s, name) })
	}
	return func() {
		nc.Close()
		if err := s.Leave(context.WithoutCancel(ctx)); err != nil {
			w.t.Errorf("observer: %v", err)
		}
	}
}

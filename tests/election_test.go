package tests

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// These are the four tests of vibhor1403/Leader: five servers, whose leader is
// looked up every 100 ms; more than one at a time, or none for too long, fails.
// Beyond that, every stretch of time in which a server believed to lead is
// recorded: no two may overlap.
const (
	electLease = time.Second
	sample     = 100 * time.Millisecond
	// tolerance is how long there may be no leader. The original's is 10 s.
	tolerance = 5 * time.Second
)

// A belief is a stretch of time in which a candidate led, as far as it knew: from
// the beginning of its work until its term was last seen to be valid.
type belief struct {
	pid         fabric.PID
	term, token uint64
	begin, end  time.Time
}

// A candidate is one server: a node on a link of its own that leads when it can.
type candidate struct {
	pid   fabric.PID
	lease time.Duration
	link  *natstest.Link
	srv   *natstest.Server

	mu      sync.Mutex // guards the fields below
	term    *election.Term
	beliefs []belief

	stop context.CancelFunc // nil while down
	done chan struct{}
	fail func(error)
}

func (c *candidate) start(t *testing.T) {
	t.Helper()
	c.link = c.srv.Link()
	opts := append(natstest.FastOptions(), nats.InProcessServer(c.link))
	n, err := fabric.Join(within(t, patience), fabric.Config{Cluster: "t", PID: c.pid, NATS: opts, Lease: c.lease})
	if err != nil {
		t.Fatalf("join as %s: %v", c.pid, err)
	}
	e, err := election.New(n, election.Config{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c.stop, c.done = cancel, make(chan struct{})
	go func() {
		defer close(c.done)
		err := e.Lead(ctx, c.lead)
		if ctx.Err() == nil {
			c.fail(fmt.Errorf("%s: Lead returned %w", c.pid, err))
		}
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), electLease/2)
		defer cancel()
		_ = n.Leave(end) // fails if its link is cut
	}()
}

// lead holds one term, and records it. What counts is when the term was last valid
// by the clock: on a busy machine this goroutine may be told of the end late.
func (c *candidate) lead(ctx context.Context, term *election.Term) error {
	b := belief{pid: c.pid, term: term.Number(), token: term.Token(), begin: time.Now()}
	c.mu.Lock()
	c.term = term
	c.mu.Unlock()
	tick := time.NewTicker(sample / 50)
	defer tick.Stop()
	for done := false; !done; {
		if now := time.Now(); term.Valid() {
			b.end = now
		}
		select {
		case <-ctx.Done():
			done = true
		case <-tick.C:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.term = nil
	c.beliefs = append(c.beliefs, b)
	return nil
}

// leads reports whether the candidate leads at this moment.
func (c *candidate) leads() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.term != nil && c.term.Valid()
}

func (c *candidate) up() bool { return c.stop != nil }

// shut ends the candidate. It gives everything back unless its link is cut.
func (c *candidate) shut() {
	if c.stop != nil {
		c.stop()
		<-c.done
		c.stop = nil
	}
}

// crash ends it without giving anything back.
func (c *candidate) crash() {
	c.link.Cut()
	c.shut()
}

// An assembly is five candidates under observation.
type assembly struct {
	t          *testing.T
	candidates []*candidate
	began      time.Time

	stop context.CancelFunc // ends watch, which is waited for through done
	done chan struct{}
	// What watch has found; to be read after done.
	longest time.Duration // without a leader
	samples int
}

func newAssembly(t *testing.T, lease time.Duration) *assembly {
	s := natstest.Start(t)
	a := &assembly{t: t, began: time.Now(), done: make(chan struct{})}
	for i := range 5 {
		c := &candidate{pid: number(i), lease: lease, srv: s, fail: func(err error) { t.Error(err) }}
		a.candidates = append(a.candidates, c)
		c.start(t)
	}
	var ctx context.Context
	ctx, a.stop = context.WithCancel(t.Context())
	go a.watch(ctx)
	t.Cleanup(a.end)
	return a
}

// watch samples who leads until ctx ends.
func (a *assembly) watch(ctx context.Context) {
	defer close(a.done)
	tick := time.NewTicker(sample)
	defer tick.Stop()
	last := time.Now() // when there was a leader
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		a.samples++
		var leaders []fabric.PID
		for _, c := range a.candidates {
			if c.leads() {
				leaders = append(leaders, c.pid)
				last = time.Now()
			}
		}
		if len(leaders) > 1 { // these were not looked at in one moment: end decides
			a.t.Logf("%v lead, one after the other or at once", leaders)
		}
		a.longest = max(a.longest, time.Since(last))
	}
}

// observe lets d pass.
func (a *assembly) observe(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-a.t.Context().Done():
	}
}

// leader returns who leads now, and waits for there to be one.
func (a *assembly) leader() *candidate {
	a.t.Helper()
	tick := time.NewTicker(sample / 10)
	defer tick.Stop()
	for deadline := time.Now().Add(tolerance); time.Now().Before(deadline); <-tick.C {
		for _, c := range a.candidates {
			if c.up() && c.leads() {
				return c
			}
		}
	}
	a.t.Fatalf("no leader within %v", tolerance)
	return nil
}

// end stops everyone and checks that no two beliefs overlap, and that terms and
// tokens rise.
func (a *assembly) end() {
	a.stop()
	<-a.done
	if a.longest > tolerance {
		a.t.Errorf("no leader for %v, want at most %v", a.longest, tolerance)
	}
	var wg sync.WaitGroup
	for _, c := range a.candidates {
		wg.Go(c.shut)
	}
	wg.Wait()
	var all []belief
	for _, c := range a.candidates {
		all = append(all, c.beliefs...)
	}
	slices.SortFunc(all, func(x, y belief) int { return cmp.Compare(x.token, y.token) })
	for i := 1; i < len(all); i++ {
		x, y := all[i-1], all[i]
		if x.end.After(y.begin) {
			a.t.Errorf("%s and %s both believed to lead for %v (terms %d and %d)", x.pid, y.pid, x.end.Sub(y.begin), x.term, y.term)
		}
		if x.term >= y.term || x.token == y.token {
			a.t.Errorf("%s leads in term %d with token %d after %s in term %d with %d", y.pid, y.term, y.token, x.pid, x.term, x.token)
		}
	}
	if len(all) == 0 {
		a.t.Error("nobody ever led")
	}
	a.t.Logf("%d terms in %v, %d samples, at most %v without a leader", len(all), time.Since(a.began).Round(time.Second), a.samples, a.longest)
}

// span is how long a test observes; the original's was 20 s.
func span() time.Duration {
	if *full {
		return 30 * time.Second
	}
	return 8 * time.Second
}

func TestElectionNoFault(t *testing.T) {
	t.Parallel()
	a := newAssembly(t, fabric.DefaultLease) // of a busy machine's pauses it makes no fault
	first := a.leader()
	a.observe(span() / 2)
	if now := a.leader(); now != first || len(first.beliefs) != 0 {
		t.Errorf("%s leads after %s, and nothing happened", now.pid, first.pid)
	}
}

// TestElectionFaults takes candidates down and up at random, in order and by
// crashes.
func TestElectionFaults(t *testing.T) {
	t.Parallel()
	a := newAssembly(t, electLease)
	a.leader()
	for until, down := time.Now().Add(span()), 0; time.Now().Before(until); {
		a.observe(200*time.Millisecond + rand.N(time.Second))
		c := a.candidates[rand.N(len(a.candidates))]
		if down == 2 {
			c = a.candidates[slices.IndexFunc(a.candidates, func(c *candidate) bool { return !c.up() })]
		} else if rand.N(3) > 0 {
			c = a.leader()
		}
		switch {
		case !c.up():
			c.start(t) // waits for its own lease if it crashed
			down--
		case rand.N(2) == 0:
			c.crash()
			down++
		default:
			c.shut()
			down++
		}
	}
}

// TestElectionTwoDown takes down the leader and another, leader after leader.
func TestElectionTwoDown(t *testing.T) {
	t.Parallel()
	a := newAssembly(t, electLease)
	for range 2 {
		down := []*candidate{a.leader()}
		for _, c := range a.candidates {
			if len(down) < 2 && c != down[0] {
				down = append(down, c)
			}
		}
		var wg sync.WaitGroup
		for _, c := range down {
			wg.Go(c.crash)
		}
		wg.Wait()
		if next := a.leader(); slices.Contains(down, next) {
			t.Errorf("%s leads, and is down", next.pid)
		}
		a.observe(span() / 4)
		for _, c := range down {
			c.start(t)
		}
		a.observe(span() / 4)
	}
}

// TestElectionLinksCut cuts the leader off, in turn: both ways, or only what it is
// to hear, so that its renewals arrive and it does not know. It must stop before
// anyone else begins, and be of use again when its link is healed.
func TestElectionLinksCut(t *testing.T) {
	t.Parallel()
	a := newAssembly(t, electLease)
	for i := range 3 {
		c := a.leader()
		if i%2 == 0 {
			c.link.Cut()
		} else {
			c.link.CutReplies()
		}
		a.observe(3 * electLease)
		if c.leads() {
			t.Errorf("%s has been cut off for three leases, and leads", c.pid)
		}
		c.link.Heal()
		a.leader()
	}
	a.observe(span() / 4)
}

package election_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

var (
	churnFor   = flag.Duration("churn.for", natstest.Fewer(time.Hour), "simulated time of TestChurn")
	candidates = flag.Int("churn.candidates", 6, "processes that take part in TestChurn")
	churnSeed  = flag.Uint64("churn.seed", 0, "seed of TestChurn; 0 is a new one")
)

// longest is the longest lease of a candidate.
const longest = 5 * time.Second

// A world is the processes of a churn test, and what they believed.
type world struct {
	t     *testing.T
	s     *natstest.Server
	rand  *rand.Rand // of the nemesis
	diary diary      // of the nodes and the nemesis

	mu      sync.Mutex // guards the fields below
	procs   []*process
	history []natstest.Belief
	buckets int // how many were lost
	joins   int
	faults  map[string]int
	count   int // the last value that a leader tried to keep
	stored  int // the last that was acknowledged, in this bucket
	puts    int
}

// keep reads what the leader before kept, and keeps more, until done. What was
// acknowledged is never missed by a later leader.
func (w *world) keep(p *process, term *election.Term, done <-chan struct{}) {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	defer context.AfterFunc(term.Context(), cancel)()
	w.mu.Lock()
	bucket, least := w.buckets, w.stored
	w.mu.Unlock()
	data, err := term.Get(ctx, "n")
	w.mu.Lock()
	if n, _ := strconv.Atoi(string(data)); err == nil && bucket == w.buckets && n < least {
		w.t.Errorf("%s in term %d reads %q, and %d was acknowledged before", p.pid, term.Number(), data, least)
	}
	w.mu.Unlock()
	for ctx.Err() == nil && err == nil {
		w.mu.Lock()
		w.count++
		n := w.count
		w.mu.Unlock()
		try, cancel := context.WithTimeout(ctx, time.Second)
		putErr := term.Put(try, "n", []byte(strconv.Itoa(n)))
		cancel()
		w.mu.Lock()
		if putErr == nil && bucket == w.buckets {
			w.stored = n
			w.puts++
		}
		w.mu.Unlock()
		select {
		case <-done:
			return
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// keeping runs keep until stop is called, which waits for it.
func (w *world) keeping(p *process, term *election.Term) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { w.keep(p, term, done) })
	return func() { close(done); wg.Wait() }
}

// A process is one PID's current life.
type process struct {
	pid   string
	link  *natstest.Link
	ctx   context.Context // ends with the life
	crash context.CancelFunc
	node  *fabric.Node // nil while joining
}

// live runs one PID: it joins, campaigns, leads, resigns, and after a crash begins
// again at once under the same PID.
func (w *world) live(ctx context.Context, i int, r *rand.Rand) {
	pid := fmt.Sprint("p", i)
	for ctx.Err() == nil {
		p := &process{pid: pid, link: w.s.Link()}
		p.ctx, p.crash = context.WithCancel(ctx)
		w.mu.Lock()
		w.procs[i] = p
		w.mu.Unlock()
		w.life(p, r)
		p.crash()
	}
}

func (w *world) life(p *process, r *rand.Rand) {
	logger := w.diary.of(p.pid)
	lease := longest
	if r.IntN(2) == 0 {
		lease = 3 * time.Second
	}
	node, err := fabric.Join(p.ctx, fabric.Config{
		Cluster: "churn", PID: fabric.PID(p.pid), Lease: lease, NATS: options(p.link), Inbox: fabric.Inbox{Off: true}, Logger: logger,
	})
	if err != nil {
		if p.ctx.Err() == nil && !errors.Is(err, fabric.ErrPIDInUse) {
			w.t.Errorf("join as %s: %v", p.pid, err)
		}
		return
	}
	w.mu.Lock()
	p.node = node
	w.joins++
	w.mu.Unlock()
	defer func() {
		// A process that crashed writes nothing any more; its link is cut by then.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), 20*time.Second)
		defer cancel()
		if p.ctx.Err() != nil {
			cancel()
		}
		node.Leave(ctx) // fails if the link is cut: the lease runs out
	}()
	grace := time.Duration(r.IntN(3)) * 500 * time.Millisecond // of a lease of 3 s or more
	hold := r.IntN(3) == 0
	e, err := election.New(node, election.Config{Name: "x", Grace: grace, HoldOnSuspend: hold, Priority: r.IntN(3), Preempt: r.IntN(3) == 0, Logger: logger})
	if err != nil {
		w.t.Error(err)
		return
	}
	for p.ctx.Err() == nil && node.Context().Err() == nil {
		wait, cancel := context.WithTimeout(p.ctx, time.Duration(1+r.IntN(60))*time.Second)
		most := time.Duration(r.ExpFloat64() * float64(8*time.Second))
		if !hold && r.IntN(2) == 0 {
			w.byLead(wait, p, e, most, grace, time.Duration(r.Int64N(int64(time.Second))))
		} else if term, err := e.Campaign(wait); err == nil && w.lead(p, term, most, hold) {
			ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
			if to := fabric.PID(fmt.Sprint("p", r.IntN(*candidates))); r.IntN(2) == 0 {
				if _, err := term.Transfer(ctx, to); err == nil {
					w.mu.Lock()
					w.faults["transferred"]++
					w.mu.Unlock()
				}
			}
			term.Resign(ctx) // goes on in the background if the link is cut
			cancel()
		}
		cancel()
	}
}

// byLead leads by Lead. The work takes the whole grace to stop when the term is lost,
// and as long as given when it ends by itself.
func (w *world) byLead(ctx context.Context, p *process, e *election.Election, most, grace, stopping time.Duration) {
	e.Lead(ctx, func(ctx context.Context, term *election.Term) error {
		b := w.believe(p, term)
		defer func() { w.record(b) }()
		timer := time.NewTimer(most)
		defer timer.Stop()
		select {
		case <-timer.C:
			b.To = time.Now()
			return nil
		case <-p.ctx.Done():
			b.To = time.Now()
			return nil
		case <-ctx.Done():
		}
		select { // the work takes its time, unless the term is lost meanwhile
		case <-time.After(stopping):
		case <-term.Context().Done():
		case <-p.ctx.Done():
		}
		if errors.Is(context.Cause(term.Context()), election.ErrLost) {
			select { // a process that crashes stops at once
			case <-time.After(grace):
			case <-p.ctx.Done():
			}
		}
		b.To = time.Now()
		return nil
	})
}

// believe begins a belief.
func (w *world) believe(p *process, term *election.Term) *natstest.Belief {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &natstest.Belief{PID: p.pid, Bucket: w.buckets, Term: term.Number(), Token: term.Token(), From: time.Now(), To: time.Now()}
}

func (w *world) record(b *natstest.Belief) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.history = append(w.history, *b)
}

// lead believes in term for as long as it may, at most for the time given, and
// records that: from its beginning to when it was last valid, what it was suspended
// for included. It reports whether it ended by itself.
func (w *world) lead(p *process, term *election.Term, most time.Duration, hold bool) bool {
	b := w.believe(p, term)
	defer w.record(b)
	defer w.keeping(p, term)()
	deadline := b.From.Add(most)
	suspended := false
	for time.Now().Before(deadline) && p.ctx.Err() == nil {
		// Either is enough to act on, so either is a belief; unless suspended, where the
		// context is none.
		valid := term.Valid()
		if !valid && term.Context().Err() != nil {
			break
		}
		if valid || !hold {
			b.To = time.Now()
		}
		if valid && suspended {
			w.mu.Lock()
			w.faults["resumed"]++
			w.mu.Unlock()
		}
		suspended = !valid
		time.Sleep(20 * time.Millisecond) // a margin of a lease is ten times that
	}
	return p.ctx.Err() == nil
}

// pick returns one of the processes.
func (w *world) pick() *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.procs[w.rand.IntN(len(w.procs))]
}

// leader returns the process that leads, as far as the records say, or any.
func (w *world) leader(e *election.Election) *process {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	defer cancel()
	l, err := e.Leader(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.procs {
		if err == nil && p.pid == string(l.PID) {
			return p
		}
	}
	return w.procs[w.rand.IntN(len(w.procs))]
}

func (w *world) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rand.Int64N(int64(high-low)))
}

// fault does one thing to the world, and returns when the server is up again; links
// that were cut heal later.
func (w *world) fault(e *election.Election) {
	victim := w.pick()
	if w.rand.IntN(2) == 0 {
		victim = w.leader(e)
	}
	link := victim.link
	kind := ""
	switch n := w.rand.IntN(100); {
	case n < 20:
		kind = "cut"
		link.Cut()
		time.AfterFunc(w.between(100*time.Millisecond, 15*time.Second), link.Heal)
	case n < 35:
		kind = "replies cut"
		link.CutReplies()
		time.AfterFunc(w.between(100*time.Millisecond, 15*time.Second), link.Heal)
	case n < 55:
		// An acknowledgement comes late, and then nothing comes any more.
		kind = "ack late, then cut"
		link.CutReplies()
		time.AfterFunc(w.between(500*time.Millisecond, 990*time.Millisecond), func() {
			link.Heal()
			time.Sleep(time.Millisecond)
			link.Cut()
			time.Sleep(8 * time.Second)
			link.Heal()
		})
	case n < 65:
		// A renewal waits in the network until the lease has run out, and arrives.
		kind = "request late"
		link.Cut()
		time.AfterFunc(w.between(4500*time.Millisecond, 5500*time.Millisecond), link.Heal)
	case n < 75:
		kind = "connection killed"
		link.Kill()
	case n < 90:
		kind = "crash"
		link.Cut()
		if w.rand.IntN(2) == 0 {
			link.Kill() // what was on its way is lost, else it arrives later
		}
		victim.crash()
		time.AfterFunc(w.between(0, 20*time.Second), link.Heal)
	case n < 95:
		kind = "server restart"
		w.s.Restart()
		synctest.Wait()
	default:
		kind = "outage"
		w.s.Stop()
		synctest.Wait()
		time.Sleep(w.between(time.Second, 12*time.Second))
		w.s.Start()
		synctest.Wait()
	}
	w.diary.of("nemesis").Info(kind, "victim", victim.pid)
	w.mu.Lock()
	w.faults[kind]++
	w.mu.Unlock()
}

// loseBucket deletes the bucket while everyone is connected: that is assumed.
func (w *world) loseBucket() {
	w.mu.Lock()
	w.buckets++
	w.stored = 0
	w.faults["bucket lost"]++
	w.mu.Unlock()
	if _, err := w.s.Connect().Request("$JS.API.STREAM.DELETE.KV_fab_churn_production", nil, time.Second); err != nil {
		w.t.Errorf("delete the bucket: %v", err)
	}
}

// TestChurn lets processes campaign for one election while links are cut, answers
// are lost or late, processes crash and come back under their PID, the server
// restarts, and the bucket is lost. At no moment do two believe that they lead.
func TestChurn(t *testing.T) {
	seed := *churnSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed: -churn.seed %d", seed)
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		w := &world{
			t: t, s: s, rand: rand.New(rand.NewPCG(seed, 0)), procs: make([]*process, *candidates), faults: map[string]int{},
		}
		tokens := map[uint64]uint64{} // of what leaders kept, by revision
		_, err := s.Connect(natstest.FastOptions()...).Subscribe("fab.churn.production.kv.e.x.n", func(m *nats.Msg) {
			var r struct{ Token uint64 }
			rev, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
			if err != nil || json.Unmarshal(m.Data, &r) != nil {
				t.Errorf("kept: %s %v", m.Data, m.Header)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			tokens[rev] = r.Token
		})
		if err != nil {
			t.Fatal(err)
		}
		observer := join(t, s, "observer", func(c *fabric.Config) { c.Passive, c.Cluster = true, "churn" })
		e, err := election.New(observer, election.Config{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		first := join(t, s, "first", func(c *fabric.Config) { c.Cluster, c.Lease = "churn", longest })
		leave(t, first)
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range *candidates {
			w.procs[i] = &process{link: s.Link(), crash: func() {}}
			wg.Go(func() { w.live(ctx, i, rand.New(rand.NewPCG(seed, uint64(i+1)))) })
		}
		var healed []time.Time
		end := time.Now().Add(*churnFor)
		for n := 1; time.Now().Before(end); n++ {
			time.Sleep(w.between(200*time.Millisecond, 8*time.Second))
			w.fault(e)
			if n%20 == 0 {
				time.Sleep(20 * time.Second) // every link has healed by now
				healed = append(healed, time.Now())
				time.Sleep(20 * time.Second)
			}
			if n%60 == 0 {
				w.loseBucket()
				healed = append(healed, time.Now().Add(longest))
				time.Sleep(20 * time.Second)
			}
		}
		time.Sleep(20 * time.Second)
		healed = append(healed, time.Now())
		time.Sleep(30 * time.Second)
		stop()
		wg.Wait()

		t.Logf("%d terms, %d joins, %d values kept, faults %v", len(w.history), w.joins, w.puts, w.faults)
		highest := uint64(0)
		for _, rev := range slices.Sorted(maps.Keys(tokens)) {
			if tokens[rev] < highest {
				t.Errorf("revision %d was stored with token %d, after %d", rev, tokens[rev], highest)
			}
			highest = max(highest, tokens[rev])
		}
		if got, want := w.puts, int(500*churnFor.Hours()); got < want {
			t.Errorf("%d values were kept in %v, want %d for the test to mean anything", got, *churnFor, want)
		}
		for _, wrong := range append(natstest.CheckBeliefs(w.history), natstest.Leaderless(w.history, healed, 15*time.Second)...) {
			t.Error(wrong)
		}
		w.diary.show(t, w.history)
		hours := churnFor.Hours()
		if got, want := len(w.history), int(200*hours); got < want {
			t.Errorf("%d terms in %v, want %d for the test to mean anything", got, *churnFor, want)
		}
		if got, want := w.joins, int(20*hours)+*candidates; got < want {
			t.Errorf("%d joins in %v, want %d for the test to mean anything", got, *churnFor, want)
		}
	})
}

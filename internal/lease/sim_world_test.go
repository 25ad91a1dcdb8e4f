package lease_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

const (
	simLongest    = 5 * time.Second // the longest lease
	simShortest   = 3 * time.Second
	simCandidates = 5
	simSignal     = "fab.test.production.y.open" // asks who is there
)

var simClaims = []string{"x", "y"}

// A simWorld is the processes of a simulation and what they believed.
type simWorld struct {
	t    *testing.T
	s    *simServer
	rand *rand.Rand // of the nemesis

	quiet atomic.Bool // no process is started

	mu       sync.Mutex // guards the fields below
	procs    []*simProc
	history  map[string][]natstest.Belief
	joins    int
	ends     map[string]int // of terms, by cause
	seen     map[string][]lease.Holder
	observed int
}

// A simProc is one PID's current life.
type simProc struct {
	pid    string
	way    *way
	ctx    context.Context // ends with the life
	crash  context.CancelFunc
	asleep atomic.Int64 // how long its machine was suspended

	mu     sync.Mutex // guards the field below
	grants map[*lease.Grant]struct{}
}

// logger is silent, or with -sim.log is not.
func simLogger(pid string) *slog.Logger {
	if !*simLog {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("proc", pid)
}

// live runs one PID: it begins again at once whenever a life ends.
func (w *simWorld) live(ctx context.Context, i int, r *rand.Rand) {
	y := w.s.way()
	for ctx.Err() == nil {
		if w.quiet.Load() {
			kv.Pause(ctx, 3)
			continue
		}
		p := &simProc{pid: fmt.Sprint("p", i), way: y, grants: map[*lease.Grant]struct{}{}}
		p.ctx, p.crash = context.WithCancel(ctx)
		w.mu.Lock()
		w.procs[i] = p
		w.mu.Unlock()
		w.life(p, r)
		p.crash()
	}
}

// connect dials as a node does, with pings that find a dead connection within a lease.
func (w *simWorld) connect(y *way) (*nats.Conn, error) {
	return nats.Connect("", nats.InProcessServer(y), nats.ReconnectBufSize(-1), nats.Timeout(time.Second),
		nats.PingInterval(1250*time.Millisecond), nats.MaxPingsOutstanding(2), nats.MaxReconnects(-1),
		nats.ReconnectWait(250*time.Millisecond), nats.ReconnectJitter(0, 0))
}

func (w *simWorld) bucket(nc *nats.Conn, lease time.Duration, logger *slog.Logger) *kv.Bucket {
	return kv.New(nc, kv.Config{
		Name: "fab_test_production", Feed: "fab.test.production.kv", Replicas: 1, Lease: lease, Logger: logger,
		Alone: func(ctx context.Context) (bool, error) { // as a node asks
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := nc.RequestWithContext(ctx, simSignal, nil)
			if errors.Is(err, nats.ErrNoResponders) {
				return true, nil
			}
			if errors.Is(err, context.DeadlineExceeded) {
				err = nil
			}
			return false, err
		},
	})
}

func (w *simWorld) life(p *simProc, r *rand.Rand) {
	nc, err := w.connect(p.way)
	if err != nil {
		kv.Pause(p.ctx, 3) // cut off, or the server is down
		return
	}
	defer nc.Close()
	term := simShortest + time.Duration(r.IntN(2))*(simLongest-simShortest)
	logger := simLogger(p.pid)
	b := w.bucket(nc, term, logger)
	if b.Open(p.ctx) != nil {
		return
	}
	session, err := lease.Start(p.ctx, b, lease.Config{
		PID: p.pid, Lease: term, Logger: logger,
		Clock: func() time.Duration { return time.Duration(p.asleep.Load()) },
	})
	if err != nil {
		if _, held := errors.AsType[*lease.HeldError](err); !held && p.ctx.Err() == nil {
			w.t.Errorf("start as %s: %v", p.pid, err)
		}
		return
	}
	w.mu.Lock()
	w.joins++
	w.mu.Unlock()
	if err := w.attend(p, nc, b, session); err != nil {
		w.t.Error(err)
	}
	var wg sync.WaitGroup
	for _, name := range simClaims {
		own := rand.New(rand.NewPCG(r.Uint64(), 0))
		wg.Go(func() { w.campaign(p, session, name, own) })
	}
	leave := time.NewTimer(time.Duration(r.ExpFloat64() * float64(2*time.Minute)))
	defer leave.Stop()
	select {
	case <-p.ctx.Done():
		session.Fail(errors.New("crashed")) // and writes nothing any more
	case <-leave.C:
	case <-session.Leaving().Done(): // another has the PID
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), 20*time.Second)
	defer cancel()
	if p.ctx.Err() != nil {
		cancel()
	}
	session.Leave(ctx) // fails if cut off: the lease runs out
	p.crash()
	wg.Wait()
}

// attend does for a session what a node does: it answers nobody who asks whether it is
// alone, but looks; and reads again when the connection is back.
func (w *simWorld) attend(p *simProc, nc *nats.Conn, b *kv.Bucket, s *lease.Session) error {
	nc.SetReconnectHandler(func(*nats.Conn) { s.Poke(); b.Nudge() })
	_, err := nc.Subscribe(simSignal, func(*nats.Msg) { b.Suspect(); s.Poke() })
	return err
}

// campaign campaigns for one claim, leads, and gives it back, until the life ends.
func (w *simWorld) campaign(p *simProc, s *lease.Session, name string, r *rand.Rand) {
	for n := 0; p.ctx.Err() == nil && s.Leaving().Err() == nil; n++ {
		ctx, cancel := context.WithTimeout(p.ctx, time.Duration(1+r.IntN(40))*time.Second)
		policy := lease.Policy{
			Grace: time.Duration(r.IntN(3)) * 300 * time.Millisecond, Lasting: r.IntN(3) == 0, Free: r.IntN(6) == 0,
			Priority: r.IntN(3),
		}
		g, err := s.Claim(lease.KeyElection(name)).AcquireBy(ctx, policy)
		cancel()
		if err != nil {
			kv.Pause(p.ctx, n)
			continue
		}
		if r.IntN(4) > 0 {
			g.ReleaseWhenLost()
		}
		p.mu.Lock()
		p.grants[g] = struct{}{}
		p.mu.Unlock()
		w.lead(p, g, name, policy, time.Duration(r.ExpFloat64()*float64(4*time.Second)))
		p.mu.Lock()
		delete(p.grants, g)
		p.mu.Unlock()
		ctx, cancel = context.WithTimeout(p.ctx, 5*time.Second)
		to := ""
		if r.IntN(3) == 0 {
			to = fmt.Sprint("p", r.IntN(simCandidates))
		}
		g.HandOver(ctx, to) // goes on in the background
		cancel()
	}
}

// lead believes in g for as long as it may, at most for the time given, and keeps
// values meanwhile. Valid and the context each are enough to act on, so each is a
// belief; but for the context of a lasting grant while it is suspended.
func (w *simWorld) lead(p *simProc, g *lease.Grant, name string, policy lease.Policy, most time.Duration) {
	w.s.mu.Lock()
	bucket := w.s.truth.buckets
	w.s.mu.Unlock()
	b := natstest.Belief{PID: p.pid, Bucket: bucket, Term: g.Term, Token: g.Token, From: time.Now(), To: time.Now()}
	ctx, cancel := context.WithTimeout(p.ctx, most)
	defer cancel()
	defer context.AfterFunc(g.Context(), cancel)()
	var wg sync.WaitGroup
	wg.Go(func() { w.keep(ctx, g, name) })
	tick := time.NewTicker(40 * time.Millisecond) // a margin is more than three times that
	defer tick.Stop()
	cause := "resigned"
	for ctx.Err() == nil {
		if g.Valid() || !policy.Lasting {
			b.To = time.Now()
			w.s.mu.Lock()
			w.s.truth.believed(g.Token)
			w.s.mu.Unlock()
		} else {
			cause = "suspended"
		}
		if policy.Lasting {
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
			continue
		}
		<-ctx.Done()
		b.To = time.Now()
	}
	wg.Wait()
	switch {
	case p.ctx.Err() != nil:
		cause = "crashed"
	case g.Context().Err() != nil:
		cause = "lost"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.history[name] = append(w.history[name], b)
	w.ends[cause]++
}

// keep stores values under the claim's guard, and reads what is there first.
func (w *simWorld) keep(ctx context.Context, g *lease.Grant, name string) {
	key := lease.KeyEntry(name, "n")
	if _, err := g.Get(ctx, key); err != nil {
		return
	}
	for n := 0; ctx.Err() == nil; n++ {
		try, cancel := context.WithTimeout(ctx, time.Second)
		g.Put(try, key, strconv.AppendInt(nil, int64(n), 10)) // in doubt: the next one settles it
		cancel()
		kv.Pause(ctx, 3)
	}
}

// observe follows who holds a claim, until ctx ends.
func (w *simWorld) observe(ctx context.Context, s *lease.Session, name string) {
	err := s.Observe(ctx, lease.KeyElection(name), func(h lease.Holder) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.seen[name] = append(w.seen[name], h)
		return true
	})
	if err != nil && ctx.Err() == nil {
		w.t.Errorf("Observe: %v", err)
	}
}

// checkSeen checks what was observed, when nothing is wrong any more: holders are seen
// in their order, but where the bucket itself went back; and the last one is the one
// that the bucket names.
func (w *simWorld) checkSeen(name string) {
	for limit := time.Now().Add(simHealing); ; time.Sleep(10 * time.Millisecond) {
		want := w.s.holder(name)
		w.mu.Lock()
		seen := w.seen[name]
		w.mu.Unlock()
		if n := len(seen); n > 0 && seen[n-1].PID == want.PID && (want.PID == "" || seen[n-1].Inc == want.Inc && seen[n-1].Term == want.Term) {
			break
		}
		if time.Now().After(limit) {
			w.t.Errorf("%s: the bucket names %+v for %v, and observed are %+v", name, want, simHealing, seen[max(0, len(seen)-3):])
			return
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	back, last := 0, uint64(0)
	for _, h := range w.seen[name] {
		if h.PID != "" {
			if h.Token < last {
				back++
			}
			last = h.Token
		}
	}
	if back > w.s.truth.buckets {
		w.t.Errorf("%s: an earlier holder was observed after a later one %d times, and the bucket went back %d times", name, back, w.s.truth.buckets)
	}
	w.observed += len(w.seen[name])
}

// pick returns one of the processes.
func (w *simWorld) pick() *simProc {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.procs[w.rand.IntN(len(w.procs))]
}

// leader returns a process that leads something, or any.
func (w *simWorld) leader() *simProc {
	w.mu.Lock()
	defer w.mu.Unlock()
	leads := slices.Collect(func(yield func(*simProc) bool) {
		for _, p := range w.procs {
			p.mu.Lock()
			n := len(p.grants)
			p.mu.Unlock()
			if n > 0 && !yield(p) {
				return
			}
		}
	})
	if len(leads) == 0 {
		leads = w.procs
	}
	return leads[w.rand.IntN(len(leads))]
}

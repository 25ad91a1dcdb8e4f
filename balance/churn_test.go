package balance

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

var (
	churnFor  = flag.Duration("churn.for", natstest.Fewer(time.Hour), "simulated time of TestClusterChurn")
	churnSeed = flag.Uint64("churn.seed", 0, "seed of TestClusterChurn; 0 is a new one")
)

// A membership is what one membership of a group was shown, in order.
type membership struct {
	pid     string
	passive bool
	calls   []Share // by OnChange
	shares  []Share // by Shares
	ended   bool    // it left: the last call must be -1
}

// checkMembership returns what is wrong with what a member was shown, given the
// views that were written.
func checkMembership(m membership, views map[uint64]*roster.View) (wrong []string) {
	complain := func(format string, args ...any) {
		wrong = append(wrong, m.pid+": "+fmt.Sprintf(format, args...))
	}
	for kind, list := range map[string][]Share{"call": m.calls, "share": m.shares} {
		epoch := uint64(0)
		for i, s := range list {
			if s.Epoch < epoch {
				complain("%s %d goes back: %v after epoch %d", kind, i, s, epoch)
			}
			epoch = s.Epoch
			if s.First < 0 && !m.passive && !onProbation(views[s.Epoch], m.pid) {
				if i > 0 && list[i-1].First < 0 {
					complain("%s %d: -1 twice: %v, %v", kind, i, list[i-1], s)
				}
				continue // lost or left: the total is what the others have, as far as it knows
			}
			if i > 0 && kind == "call" && list[i-1].same(s) {
				complain("%s %d is no change: %v", kind, i, s)
			}
			v := views[s.Epoch]
			if v == nil {
				complain("%s %d of a view that was never written: %v", kind, i, s)
				continue
			}
			s.Stale = false
			placed, total := assign(m.pid, wantsOf(v))
			if want := shareIn(placed, total, s.Epoch); s != want && !(m.passive && i == len(list)-1 && m.ended) {
				complain("%s %d is %v, the view says %v", kind, i, s, want)
			}
		}
	}
	if n := len(m.calls); m.ended && n > 0 && m.calls[n-1].First != -1 {
		complain("the last call is %v after the end", m.calls[n-1])
	}
	return wrong
}

// onProbation: the member sees the total, and has nothing yet.
func onProbation(v *roster.View, pid string) bool {
	if v == nil {
		return false
	}
	m, _ := v.Find(pid)
	return m.Probation
}

// checkViews returns what is wrong with the views themselves: a gap, an epoch with
// two views, a token that falls, ranges that do not tile.
func checkViews(list []*roster.View) (wrong []string) {
	for i, v := range list {
		placed, total := assign("", wantsOf(v))
		next := 0
		for _, p := range placed {
			if p.Workers > 0 && p.First != next {
				wrong = append(wrong, fmt.Sprintf("epoch %d does not tile: %v", v.Epoch, placed))
			}
			next += p.Workers
		}
		if next != total {
			wrong = append(wrong, fmt.Sprintf("epoch %d: total %d of %v", v.Epoch, total, placed))
		}
		if i > 0 && (v.Epoch != list[i-1].Epoch+1 || v.Token < list[i-1].Token) {
			wrong = append(wrong, fmt.Sprintf("epoch %d, token %d after %d, %d", v.Epoch, v.Token, list[i-1].Epoch, list[i-1].Token))
		}
	}
	return wrong
}

func TestCheckMembershipFindsWhatIsPlanted(t *testing.T) {
	view := func(epoch uint64, pids ...string) *roster.View {
		v := &roster.View{Epoch: epoch, Token: 1}
		for _, p := range pids {
			v.Members = append(v.Members, &roster.Member{PID: p, Ask: roster.Ask{Workers: 2}})
		}
		return v
	}
	views := map[uint64]*roster.View{1: view(1, "a"), 2: view(2, "a", "b"), 3: view(3, "a", "b", "c")}
	good := membership{"b", false, []Share{{First: 2, Workers: 2, Total: 4, Epoch: 2}, {First: -1, Workers: 0, Total: 2, Epoch: 2}, {First: 2, Workers: 2, Total: 6, Epoch: 3}, {First: -1, Workers: 0, Total: 4, Epoch: 3}}, nil, true}
	if wrong := checkMembership(good, views); len(wrong) > 0 {
		t.Errorf("a good membership: %v", wrong)
	}
	for name, calls := range map[string][]Share{
		"goes back":      {{First: 2, Workers: 2, Total: 6, Epoch: 3}, {First: 2, Workers: 2, Total: 4, Epoch: 2}, {First: -1, Workers: 0, Total: 4, Epoch: 3}},
		"-1 twice":       {{First: 2, Workers: 2, Total: 6, Epoch: 3}, {First: -1, Workers: 0, Total: 4, Epoch: 3}, {First: -1, Workers: 0, Total: 4, Epoch: 3}},
		"wrong index":    {{First: 0, Workers: 2, Total: 4, Epoch: 2}, {First: -1, Workers: 0, Total: 2, Epoch: 2}},
		"wrong total":    {{First: 2, Workers: 2, Total: 5, Epoch: 2}, {First: -1, Workers: 0, Total: 2, Epoch: 2}},
		"unknown view":   {{First: 2, Workers: 2, Total: 4, Epoch: 9}, {First: -1, Workers: 0, Total: 2, Epoch: 9}},
		"no change":      {{First: 2, Workers: 2, Total: 4, Epoch: 2}, {First: 2, Workers: 2, Total: 4, Epoch: 2}, {First: -1, Workers: 0, Total: 2, Epoch: 2}},
		"no -1 at last":  {{First: 2, Workers: 2, Total: 4, Epoch: 2}},
		"too many taken": {{First: 2, Workers: 3, Total: 4, Epoch: 2}, {First: -1, Workers: 0, Total: 2, Epoch: 2}},
	} {
		if wrong := checkMembership(membership{"b", false, calls, nil, true}, views); len(wrong) == 0 {
			t.Errorf("%s: passed", name)
		}
	}
	if wrong := checkViews([]*roster.View{views[1], views[3]}); len(wrong) == 0 {
		t.Error("a gap of epochs passed")
	}
}

// A churned is the state of a churn test.
type churned struct {
	t *testing.T
	s *natstest.Server

	mu       sync.Mutex // guards the fields below
	links    []*natstest.Link
	crashes  []context.CancelFunc
	recorded []membership
	views    []*roster.View
	now      map[string]*Group // memberships under way
}

// live runs one PID until ctx ends.
func (w *churned) live(ctx context.Context, i int, r *rand.Rand) {
	pid := fmt.Sprint("p", i)
	for ctx.Err() == nil {
		life, crash := context.WithCancel(ctx)
		link := w.s.Link()
		w.mu.Lock()
		w.links[i], w.crashes[i] = link, crash
		w.mu.Unlock()
		node, err := fabric.Join(life, fabric.Config{
			Cluster: "c", PID: fabric.PID(pid), Inbox: fabric.Inbox{Off: true},
			NATS: append(natstest.FastOptions(), nats.InProcessServer(link)),
		})
		if err != nil {
			crash()
			continue
		}
		for range 1 + r.IntN(4) {
			if life.Err() == nil && node.Context().Err() == nil {
				w.member(life, node, r)
			}
		}
		leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		if life.Err() != nil && ctx.Err() == nil {
			cancel() // it crashed: it writes nothing any more
		}
		node.Leave(leave) // fails if the link is cut: the lease runs out
		cancel()
		crash()
	}
}

// member runs one membership.
func (w *churned) member(ctx context.Context, node *fabric.Node, r *rand.Rand) {
	m := membership{pid: string(node.PID()), passive: r.IntN(8) == 0}
	var mu sync.Mutex // guards m's lists
	cfg := Config{Group: "g", Passive: m.passive, Workers: 1 + r.IntN(4), OnChange: func(s Share) {
		mu.Lock()
		defer mu.Unlock()
		m.calls = append(m.calls, s)
	}}
	g, err := Join(ctx, node, cfg)
	if err != nil {
		return
	}
	w.mu.Lock()
	w.now[m.pid] = g
	w.mu.Unlock()
	var reader sync.WaitGroup
	reader.Go(func() {
		for s, err := range g.Shares(context.WithoutCancel(ctx)) {
			if err != nil {
				return
			}
			mu.Lock()
			m.shares = append(m.shares, s)
			mu.Unlock()
		}
	})
	for range r.IntN(12) {
		select {
		case <-ctx.Done():
		case <-g.Context().Done():
		case <-time.After(time.Duration(r.Int64N(int64(20 * time.Second)))):
		}
		if ctx.Err() != nil || g.Context().Err() != nil {
			break
		}
		if !m.passive {
			wait, cancel := context.WithTimeout(ctx, 5*time.Second)
			g.SetWorkers(wait, 1+r.IntN(6)) // fails while the link is cut
			cancel()
		}
	}
	w.mu.Lock()
	delete(w.now, m.pid)
	w.mu.Unlock()
	left := false
	for !left {
		leave, cancel := context.WithTimeout(ctx, 10*time.Second)
		left = g.Leave(leave) == nil // fails while the link is cut
		cancel()
		if ctx.Err() != nil || node.Context().Err() != nil {
			break
		}
	}
	reader.Wait()
	mu.Lock()
	defer mu.Unlock()
	m.ended = left
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recorded = append(w.recorded, m)
}

// viewWritten takes a view off the feed, or out of the bucket.
func (w *churned) viewWritten(data []byte) {
	v := new(roster.View)
	if err := json.Unmarshal(data, v); err != nil {
		w.t.Errorf("a view cannot be read: %v", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.views); n == 0 || w.views[n-1].Token != v.Token || w.views[n-1].Epoch != v.Epoch {
		w.views = append(w.views, v)
	}
}

// observe takes every view that is written from now on off the feed. Its connection
// sits in the server's own process, and ends with the server: one that connects again
// races with the members'.
func (w *churned) observe() {
	nc := w.s.Connect(nats.NoReconnect())
	if _, err := nc.Subscribe("fab.c.production.kv.v.g.g", func(m *nats.Msg) { w.viewWritten(m.Data) }); err != nil {
		w.t.Error(err)
	}
	js, err := nc.JetStream()
	if err != nil {
		w.t.Error(err)
		return
	}
	// One may be stored in the last moment of a server, and be published to nobody.
	last, err := js.GetLastMsg("KV_fab_c_production", "$KV.fab_c_production.v.g.g") // after the SUB
	switch {
	case err == nil:
		w.viewWritten(last.Data)
	case !errors.Is(err, nats.ErrMsgNotFound) && !errors.Is(err, nats.ErrStreamNotFound):
		w.t.Error(err)
	}
}

func (w *churned) fault(r *rand.Rand) {
	w.mu.Lock()
	i := r.IntN(len(w.links))
	link, crash := w.links[i], w.crashes[i]
	w.mu.Unlock()
	length := time.Duration(r.Int64N(int64(12 * time.Second)))
	switch n := r.IntN(100); {
	case n < 30:
		link.Cut()
		time.AfterFunc(length, link.Heal)
	case n < 50:
		link.CutReplies()
		time.AfterFunc(length, link.Heal)
	case n < 70:
		link.Kill()
	case n < 90:
		link.Cut()
		crash()
		time.AfterFunc(length, link.Heal) // what it wrote last may arrive later
	default:
		w.s.Stop()
		synctest.Wait()
		time.Sleep(length / 4)
		w.s.Start()
		w.observe()
		synctest.Wait()
	}
}

// TestClusterChurn records what the members of a group are shown while they join,
// leave, change their workers, are cut off and crash, and the server restarts: all
// of it is what assign says of the views that were written, in their order.
func TestClusterChurn(t *testing.T) {
	t.Parallel() // with the simulations: two bubbles would share the timers of nats.go
	seed := *churnSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed: -churn.seed %d", seed)
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		const procs = 6
		w := &churned{t: t, s: s, links: make([]*natstest.Link, procs), crashes: make([]context.CancelFunc, procs), now: map[string]*Group{}}
		w.observe()
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range procs {
			w.links[i], w.crashes[i] = s.Link(), func() {}
			wg.Go(func() { w.live(ctx, i, rand.New(rand.NewPCG(seed, uint64(i+1)))) })
		}
		r := rand.New(rand.NewPCG(seed, 0))
		for end := time.Now().Add(*churnFor); time.Now().Before(end); {
			time.Sleep(time.Duration(r.Int64N(int64(8 * time.Second))))
			w.fault(r)
		}
		time.Sleep(time.Minute)
		w.converged()
		stop()
		wg.Wait()
		w.check()
	})
}

// converged checks that everyone who is in the group has the newest view.
func (w *churned) converged() {
	w.mu.Lock()
	defer w.mu.Unlock()
	newest := w.views[len(w.views)-1]
	for pid, g := range w.now {
		if got := g.Share(); got.Epoch+1 < newest.Epoch { // one may be on its way
			w.t.Errorf("a minute after the last fault %s has %v, the newest view is %d", pid, got, newest.Epoch)
		}
	}
}

func (w *churned) check() {
	var list []*roster.View
	views := map[uint64]*roster.View{}
	shown := 0
	for _, v := range w.views {
		if views[v.Epoch] != nil {
			w.t.Errorf("two views of epoch %d: %v, %v", v.Epoch, views[v.Epoch], v)
		}
		views[v.Epoch] = v
		list = append(list, v)
	}
	wrong := checkViews(list)
	for _, m := range w.recorded {
		shown += len(m.shares)
		wrong = append(wrong, checkMembership(m, views)...)
	}
	w.t.Logf("%d views, %d memberships, %d shares", len(w.views), len(w.recorded), shown)
	if len(wrong) > 20 {
		wrong = append(wrong[:20], fmt.Sprint("and ", len(wrong)-20, " more"))
	}
	if len(wrong) > 0 {
		w.t.Error(strings.Join(wrong, "\n"))
	}
	if hours := churnFor.Hours(); len(w.views) < int(200*hours) || shown < int(800*hours) {
		w.t.Errorf("%d views and %d shares in %v: too few for the test to mean anything", len(w.views), shown, *churnFor)
	}
}

package balance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// An index goes from one to the other when the one has stopped, not before; those
// whose indices stay are not interrupted.
func TestClusterStrictHandsOver(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &holdings{t: t, by: map[int]string{}}
		cfg := Config{Mode: StrictIndex, Workers: 2}
		const stopping = 3 * time.Second
		b := in(t, s, "b", h.config(cfg, "b", stopping))
		if got := indices(b); !slices.Equal(got, []int{0, 1}) {
			t.Errorf("b has %v", got)
		}
		token, err := b.Token(1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Token(2); !errors.Is(err, ErrNotHeld) {
			t.Errorf("Token of another index = %v, want ErrNotHeld", err)
		}
		// Contiguous: a has 0 and 1, b has 2 and 3 from now on.
		began := time.Now()
		a := in(t, s, "a", h.config(cfg, "a", stopping))
		if took := time.Since(began); took < stopping || took > stopping+time.Second {
			t.Errorf("a has indices after %v, want when b has stopped: %v", took, stopping)
		}
		a.await(t, "0 and 1", func() bool { return slices.Equal(indices(a), []int{0, 1}) })
		b.await(t, "2 and 3", func() bool { return slices.Equal(indices(b), []int{2, 3}) })
		if next, err := a.Token(1); err != nil || next <= token {
			t.Errorf("the token of 1 is %d, %v after %d", next, err, token)
		}
		if _, err := b.Token(1); !errors.Is(err, ErrNotHeld) {
			t.Errorf("b's token of 1 = %v, want ErrNotHeld", err)
		}
		_, revoked := h.counts()
		withdraw(t, b)
		if _, now := h.counts(); now != revoked+2 || len(a.told()) > 4 {
			t.Errorf("%d indices moved when b left, a was told %v", now-revoked, a.told())
		}
		a.await(t, "two indices", func() bool { return a.Share().Total == 2 && len(indices(a)) == 2 })
		withdraw(t, a)
	})
}

// A member that is cut off stops before its lease's end, and only then do others get
// its indices. What it wrote before, and is on its way still, is refused.
func TestClusterStrictWaitsForTheLease(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &holdings{t: t, by: map[int]string{}}
		cfg := Config{Mode: StrictIndex, Layout: Sticky, Workers: 2, Grace: time.Second}
		a := in(t, s, "a", h.config(cfg, "a", 900*time.Millisecond))
		b := in(t, s, "b", h.config(cfg, "b", 0))
		a.await(t, "all", func() bool { return a.Share().Total == 4 })
		if err := a.Put(limit(t, time.Minute), 0, "at", []byte("a was here")); err != nil {
			t.Errorf("Put = %v", err)
		}
		if err := a.Put(limit(t, time.Minute), 2, "at", nil); !errors.Is(err, ErrNotHeld) {
			t.Errorf("Put for another's index = %v, want ErrNotHeld", err)
		}
		if v, err := b.Get(limit(t, time.Minute), "at"); err != nil || string(v) != "a was here" {
			t.Errorf("Get = %q, %v", v, err)
		}
		token, err := a.Token(0)
		if err != nil {
			t.Fatal(err)
		}
		a.link.Cut()
		began := time.Now()
		b.await(t, "0 and 1", func() bool { return slices.Equal(indices(b), []int{0, 1}) })
		if took := time.Since(began); took < ttl*6/10 || took > ttl+time.Second {
			t.Errorf("b has the indices after %v, want about a lease of %v", took, ttl)
		}
		if got := a.Share(); got.First != -1 {
			t.Errorf("a has %v", got)
		}
		// A request of a's that was under way all the time.
		msg := nats.NewMsg("$KV.fab_c_production.d.g.at")
		msg.Data = []byte("a zombie was here")
		msg.Header.Set("Nats-Expected-Last-Subject-Sequence", fmt.Sprint(token))
		msg.Header.Set("Nats-Expected-Last-Subject-Sequence-Subject", "$KV.fab_c_production.o.g.0")
		answer, err := s.Connect().RequestMsg(msg, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if v, _ := b.Get(limit(t, time.Minute), "at"); string(v) != "a was here" {
			t.Errorf("the value is %q, the server said %s", v, answer.Data)
		}
		if err := b.Put(limit(t, time.Minute), 0, "at", []byte("b")); err != nil {
			t.Errorf("Put of the new holder = %v", err)
		}
		a.link.Heal()
		a.await(t, "indices again", func() bool { return len(indices(a)) == 2 })
		b.await(t, "two of four", func() bool { return len(indices(b)) == 2 && b.Share().Total == 4 })
		withdraw(t, a)
		withdraw(t, b)
	})
}

func TestStrictMethodsNeedAStrictMode(t *testing.T) {
	g, err := Static(t.Context(), 0, 1, 1, Config{})
	if err != nil {
		t.Fatal(err)
	}
	_, tokenErr := g.Token(0)
	_, getErr := g.Get(t.Context(), "x")
	for _, err := range []error{tokenErr, getErr, g.Put(t.Context(), 0, "x", nil)} {
		if !errors.Is(err, ErrNotStrict) {
			t.Errorf("%v, want ErrNotStrict", err)
		}
	}
	if err := g.Leave(t.Context()); err != nil {
		t.Error(err)
	}
}

// In StrictEpoch nobody acts on another total than anybody else.
func TestClusterStrictEpoch(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		var mu sync.Mutex
		totals := map[string]int{} // of those who act
		config := func(pid string) Config {
			return Config{Mode: StrictEpoch, Workers: 2, OnRevoke: func(context.Context, []int) {
				time.Sleep(rand.N(200 * time.Millisecond))
				mu.Lock()
				defer mu.Unlock()
				delete(totals, pid)
			}}
		}
		var members []*seen
		for i := range 4 {
			pid := fmt.Sprint(i)
			members = append(members, in(t, s, pid, config(pid)))
			check := members[i]
			go func() {
				for s, err := range check.Shares(context.WithoutCancel(t.Context())) {
					if err != nil {
						return
					}
					mu.Lock()
					if s.First >= 0 && !s.Stale {
						totals[pid] = s.Total
					}
					for other, total := range totals {
						if s.First >= 0 && total != s.Total {
							t.Errorf("%s acts on a total of %d, %s of %d", pid, s.Total, other, total)
						}
					}
					mu.Unlock()
				}
			}()
		}
		for _, m := range members {
			m.await(t, "eight", func() bool { return m.Share().Total == 8 && m.Share().Workers == 2 })
		}
		if err := members[2].SetWorkers(limit(t, time.Minute), 3); err != nil {
			t.Fatal(err)
		}
		for _, m := range members {
			m.await(t, "nine", func() bool { return m.Share().Total == 9 && m.Share().First >= 0 })
		}
		withdraw(t, members[0])
		for _, m := range members[1:] {
			m.await(t, "seven", func() bool { return m.Share().Total == 7 && m.Share().First >= 0 })
			defer withdraw(t, m)
		}
	})
}

// TestClusterStrictChurn lets members come, go, change, be cut off, crash and stop
// slowly, while the server restarts: nobody is ever assigned what another has, and in
// the end everything is somebody's.
func TestClusterStrictChurn(t *testing.T) {
	seed := *churnSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed: -churn.seed %d", seed)
	for _, cfg := range []Config{{Mode: StrictIndex}, {Mode: StrictIndex, Layout: Sticky, Rejoin: 3 * time.Second}, {Mode: StrictIndex, Partitions: 32, MoveBudget: -1}} {
		strictChurn(t, seed, cfg)
	}
}

func strictChurn(t *testing.T, seed uint64, cfg Config) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &holdings{t: t, by: map[int]string{}}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var mu sync.Mutex // guards groups
		groups := map[string]*Group{}
		for i := range 5 {
			pid, r := fmt.Sprint("p", i), rand.New(rand.NewPCG(seed, uint64(i)))
			wg.Go(func() {
				for ctx.Err() == nil {
					link := s.Link()
					node, err := fabric.Join(ctx, fabric.Config{
						Cluster: "c", PID: fabric.PID(pid), Inbox: fabric.Inbox{Off: true},
						NATS: append(natstest.FastOptions(), nats.InProcessServer(link)), Logger: logTo(t, pid),
					})
					if err != nil {
						continue
					}
					mine := h.config(cfg, pid, time.Duration(r.IntN(400))*time.Millisecond)
					mine.Group, mine.Workers = "g", 1+r.IntN(3)
					mine.Logger = logTo(t, pid)
					g, err := Join(ctx, node, mine)
					if err == nil {
						mu.Lock()
						groups[pid] = g
						mu.Unlock()
						live(ctx, r, g, link)
					}
					mu.Lock()
					delete(groups, pid)
					mu.Unlock()
					link.Heal()
					leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
					node.Leave(leave)
					cancel()
				}
			})
		}
		r := rand.New(rand.NewPCG(seed, 99))
		restarts := 6
		if natstest.Race {
			restarts = 2
		}
		for range restarts {
			time.Sleep(time.Duration(20+r.IntN(40)) * time.Second)
			s.Stop()
			time.Sleep(time.Duration(r.IntN(3)) * time.Second)
			s.Start()
		}
		most, moves := h.counts()
		t.Logf("kind %s: at most %d held at a time, %d revoked", cfg.kind(), most, moves)
		if moves < 16*restarts {
			t.Errorf("%d revoked: too few for the test to mean anything", moves)
		}
		stop()
		wg.Wait()
		if left := h.snapshot(); len(left) > 0 {
			t.Errorf("everyone has left, and %v is held", left)
		}
	})
}

// live is one membership, until it leaves or something ends it.
func live(ctx context.Context, r *rand.Rand, g *Group, link *natstest.Link) {
	for range 2 + r.IntN(8) {
		select {
		case <-ctx.Done():
			return
		case <-g.Context().Done():
			return
		case <-time.After(time.Duration(r.IntN(8000)) * time.Millisecond):
		}
		wait, cancel := context.WithTimeout(ctx, time.Second)
		switch r.IntN(6) {
		case 0:
			link.Cut()
			time.AfterFunc(time.Duration(r.IntN(12))*time.Second, link.Heal)
		case 1:
			link.CutReplies()
			time.AfterFunc(time.Duration(r.IntN(4))*time.Second, link.Heal)
		case 2:
			link.Kill()
		case 3:
			g.SetReady(wait, r.IntN(2) == 0)
		default:
			g.SetWorkers(wait, 1+r.IntN(4))
		}
		cancel()
	}
}

// When all is quiet again, everything that is wanted is held.
func TestClusterStrictComesToRest(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &holdings{t: t, by: map[int]string{}}
		cfg := Config{Mode: StrictIndex, Workers: 2}
		var members []*seen
		for i := range 4 {
			pid := fmt.Sprint(i)
			members = append(members, in(t, s, pid, h.config(cfg, pid, 100*time.Millisecond)))
		}
		for round := range 6 {
			for i, m := range members {
				switch (round + i) % 3 {
				case 0:
					m.link.Cut()
				case 1:
					m.link.Kill()
				}
			}
			time.Sleep(time.Duration(round) * 2 * time.Second)
			for _, m := range members {
				m.link.Heal()
			}
			time.Sleep(3 * ttl)
			if held := h.snapshot(); len(held) != 8 {
				t.Fatalf("round %d: three leases after the last fault %v is held, want 0 to 7", round, held)
			}
		}
		for _, m := range members {
			withdraw(t, m)
		}
	})
}

// A group that is empty can begin again as another kind, however often.
func TestClusterKindsFollowEachOther(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		for round := range 3 {
			for _, cfg := range []Config{{Mode: StrictIndex, Workers: 2}, {Partitions: 64}, {}, {Mode: StrictIndex, Layout: Sticky}, {Mode: StrictEpoch}, {Mode: StrictIndex, Partitions: 8}} {
				a := in(t, s, fmt.Sprint("a", round), cfg)
				b := in(t, s, fmt.Sprint("b", round), cfg)
				watcher := cfg
				watcher.Passive = true
				w := in(t, s, "w", watcher)
				a.await(t, "a share", func() bool { return a.Share().First >= 0 && a.Share().Total == 2*a.Share().Workers })
				for _, m := range []*seen{a, b, w} {
					if err := m.node.Leave(limit(t, time.Minute)); err != nil {
						t.Error(err)
					}
				}
			}
		}
	})
}

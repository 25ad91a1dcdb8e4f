package balance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// await waits until ok, asked again at every change of m's share.
func (m *seen) await(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for _, err := range m.Shares(limit(t, time.Minute)) {
		if err != nil {
			t.Fatalf("%s: %s: %v, it has %v", m.node.PID(), what, err, m.Share())
		}
		if ok() {
			break
		}
	}
	return time.Since(began)
}

func indices(m *seen) []int { return slices.Collect(m.Share().Indices()) }

func TestClusterSticky(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := in(t, s, "c", Config{Workers: 2, Layout: Sticky})
		b := in(t, s, "b", Config{Workers: 2, Layout: Sticky})
		c := in(t, s, "a", Config{Workers: 2, Layout: Sticky}) // the first by PID, and still the last
		for m, want := range map[*seen][]int{a: {0, 1}, b: {2, 3}, c: {4, 5}} {
			m.await(t, "six indices", func() bool { return m.Share().Total == 6 })
			if got := indices(m); !slices.Equal(got, want) {
				t.Errorf("%s has %v, want %v", m.node.PID(), got, want)
			}
		}
		time.Sleep(time.Second)
		told := len(b.told())
		withdraw(t, a)
		b.await(t, "four indices", func() bool { return b.Share().Total == 4 })
		c.await(t, "four indices", func() bool { return c.Share().Total == 4 })
		if got := indices(b); !slices.Equal(got, []int{2, 3}) || len(b.told()) > told+1 {
			t.Errorf("b has %v, want the indices that it had", got)
		}
		if got := indices(c); !slices.Equal(got, []int{0, 1}) {
			t.Errorf("a has %v, want those that were free", got)
		}
		if err := b.SetWorkers(limit(t, time.Minute), 1); err != nil {
			t.Fatal(err)
		}
		c.await(t, "three indices", func() bool { return c.Share().Total == 3 })
		b.await(t, "three indices", func() bool { return b.Share().Total == 3 })
		if got := indices(b); !slices.Equal(got, []int{2}) {
			t.Errorf("b has %v, want the lowest of its indices", got)
		}
		d := in(t, s, "d", Config{Workers: 2, Layout: Sticky})
		c.await(t, "five indices", func() bool { return c.Share().Total == 5 })
		if got := indices(d); !slices.Equal(got, []int{3, 4}) {
			t.Errorf("d has %v, want the new indices", got)
		}
		if p := c.Members(); len(p) != 3 || !slices.Equal(slices.Collect(p[2].Indices()), []int{3, 4}) {
			t.Errorf("Members = %v", p)
		}
		for _, m := range []*seen{b, c, d} {
			withdraw(t, m)
		}
	})
}

// A member that thinks of another kind of group does not get in, and those who are
// there do not notice.
func TestClusterMismatch(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := in(t, s, "a", Config{Layout: Sticky})
		n := nodeOn(t, s.Link(), "b")
		for _, cfg := range []Config{{}, {Partitions: 64}, {Mode: StrictIndex, OnChange: func(Share) {}}} {
			cfg.Group = "g"
			if g, err := Join(limit(t, time.Minute), n, cfg); !errors.Is(err, ErrMismatch) {
				t.Fatalf("Join of kind %q = %v, %v, want ErrMismatch", cfg.kind(), g.Share(), err)
			}
			cfg.Passive = true // who only watches goes along
			g, err := Join(limit(t, time.Minute), n, cfg)
			if err != nil || g.Share().Total != 1 || g.Partitions().Count() != 0 {
				t.Fatalf("a passive Join of kind %q = %v, %v", cfg.kind(), g.Share(), err)
			}
			if err := g.Leave(limit(t, time.Minute)); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Minute)
		if got := a.told(); len(got) != 1 || len(a.Members()) != 1 {
			t.Errorf("a was told %v, and sees %v", got, a.Members())
		}
		withdraw(t, a)
		g, err := Join(limit(t, time.Minute), n, Config{Group: "g", Partitions: 64})
		if err != nil {
			t.Fatalf("the group is empty, and Join = %v", err)
		}
		if err := g.Leave(limit(t, time.Minute)); err != nil {
			t.Error(err)
		}
	})
}

// holdings checks what OnAssign and OnRevoke say: nobody is assigned what another has.
type holdings struct {
	t  *testing.T
	mu sync.Mutex // guards the fields below
	by map[int]string
	// most is how many were ever held at a time; moves how often something was revoked.
	most, moves int
}

// config returns cfg with callbacks for the member pid, which takes stopping to stop.
func (h *holdings) config(cfg Config, pid string, stopping time.Duration) Config {
	cfg.OnAssign = func(_ context.Context, list []int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, i := range list {
			if other, ok := h.by[i]; ok && h.t != nil {
				h.t.Errorf("%s is assigned %d, which is %s's", pid, i, other)
			}
			h.by[i] = pid
		}
		h.most = max(h.most, len(h.by))
	}
	cfg.OnRevoke = func(ctx context.Context, list []int) {
		select {
		case <-time.After(stopping):
		case <-ctx.Done():
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, i := range list {
			if other, ok := h.by[i]; ok && other != pid && h.t != nil {
				h.t.Errorf("%d is revoked from %s, but it is %q's", i, pid, h.by[i])
			}
			if h.by[i] == pid {
				delete(h.by, i)
			}
		}
		h.moves += len(list)
	}
	return cfg
}

// counts returns how much was held at most, and how often something was revoked.
func (h *holdings) counts() (most, moves int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.most, h.moves
}

func (h *holdings) snapshot() map[int]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.by)
}

func TestClusterPartitions(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h := &holdings{by: map[int]string{}}
		const parts = 60
		cfg := Config{Partitions: parts, MoveBudget: -1}
		a := in(t, s, "a", h.config(cfg, "a", 0))
		b := in(t, s, "b", h.config(cfg, "b", 0))
		weighty := cfg
		weighty.Workers, weighty.Weight, weighty.Zone = 2, 2, "x"
		c := in(t, s, "c", h.config(weighty, "c", 0))
		members := map[string]*seen{"a": a, "b": b, "c": c}
		agree := func(n int, want map[string]int) {
			t.Helper()
			for pid, m := range members {
				m.await(t, fmt.Sprint(want), func() bool {
					p := m.Partitions()
					return p.Count() == n && len(p.Mine()) == want[pid]
				})
			}
			count := map[string]int{}
			for i := range n {
				owner := a.Partitions().OwnerOf(i)
				count[string(owner)]++
				for pid, m := range members {
					if got := m.Partitions().OwnerOf(i); got != owner {
						t.Errorf("%d is %s's for %s, and %s's for a", i, got, pid, owner)
					}
					if mine := slices.Contains(m.Partitions().Mine(), i); mine != (pid == string(owner)) {
						t.Errorf("%d is in Mine of %s: %v, its owner is %s", i, pid, mine, owner)
					}
				}
			}
			if !maps.Equal(count, want) {
				t.Errorf("they have %v, want %v", count, want)
			}
		}
		agree(parts, map[string]int{"a": 10, "b": 10, "c": 40})
		before := a.Partitions()
		withdraw(t, b)
		delete(members, "b")
		agree(parts, map[string]int{"a": 12, "c": 48})
		for i := range parts {
			if was := before.OwnerOf(i); was != "b" && a.Partitions().OwnerOf(i) != was {
				t.Errorf("%d moved from %s, who is here", i, was)
			}
		}
		for _, key := range []string{"", "x", "some key"} {
			p := a.Partitions()
			if p.Owner(key) != c.Partitions().Owner(key) || p.Has(key) != (p.Owner(key) == "a") {
				t.Errorf("key %q: partition %d, owner %s and %s", key, p.Of(key), p.Owner(key), c.Partitions().Owner(key))
			}
		}
		if s := c.Share(); s.Total != 3 || s.Workers != 2 {
			t.Errorf("share %v beside the partitions, want 2 of 3", s)
		}

		// Twice as many: no key changes its owner.
		double := cfg
		double.Partitions = 2 * parts
		double.NotReady = true
		before = a.Partitions()
		d := in(t, s, "d", h.config(double, "d", 0))
		members["d"] = d
		agree(2*parts, map[string]int{"a": 24, "c": 96})
		for i := range 2 * parts {
			if was := before.OwnerOf(i % parts); a.Partitions().OwnerOf(i) != was {
				t.Errorf("%d of %d moved from %s", i, 2*parts, was)
			}
		}

		// One gets ready, another is drained.
		if err := d.SetReady(limit(t, time.Minute), true); err != nil {
			t.Fatal(err)
		}
		agree(2*parts, map[string]int{"a": 20, "c": 80, "d": 20})
		var progress []int
		if err := c.Drain(limit(t, time.Minute), func(left int) { progress = append(progress, left) }); err != nil {
			t.Fatal(err)
		}
		agree(2*parts, map[string]int{"a": 60, "d": 60})
		if n := len(progress); n < 2 || progress[n-1] != 0 || progress[0] != 80 {
			t.Errorf("progress of Drain = %v, want from 80 to 0", progress)
		}
		for _, m := range members {
			withdraw(t, m)
		}
	})
}

// With a budget, a join moves its part step by step.
func TestClusterMoveBudget(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		const parts, budget = 64, 5
		cfg := Config{Partitions: parts, MoveBudget: budget}
		a, b := in(t, s, "a", cfg), in(t, s, "b", cfg)
		last, steps := len(b.Partitions().Mine()), 0
		b.await(t, "half of the partitions", func() bool {
			n := len(b.Partitions().Mine())
			if n-last > 2*budget { // one view may have been passed over
				t.Errorf("%d partitions more at once, the budget is %d", n-last, budget)
			}
			if n != last {
				steps++
			}
			last = n
			return n == parts/2
		})
		if steps < 3 {
			t.Errorf("%d steps", steps)
		}
		withdraw(t, a)
		b.await(t, "all partitions", func() bool { return len(b.Partitions().Mine()) == parts })
		withdraw(t, b)
	})
}

// Rolling restart: who comes back in time has its place again, and nobody else is told
// of any change.
func TestClusterRejoin(t *testing.T) {
	for _, layout := range []Layout{Contiguous, Sticky} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			cfg := Config{Workers: 2, Rejoin: 30 * time.Second, Layout: layout}
			var members []*seen
			for i := range 4 {
				members = append(members, in(t, s, fmt.Sprint(i), cfg))
			}
			for _, m := range members {
				m.await(t, "all", func() bool { return m.Share().Total == 8 })
			}
			time.Sleep(time.Second)
			told := map[int]int{}
			for i, m := range members {
				told[i] = len(m.told())
			}
			for i, m := range members {
				before := m.Share()
				if i%2 == 0 {
					if err := m.node.Leave(limit(t, time.Minute)); err != nil {
						t.Error(err)
					}
				} else {
					m.link.Cut() // killed
				}
				time.Sleep(8 * time.Second)
				members[i] = in(t, s, fmt.Sprint(i), cfg)
				m.link.Heal()
				<-m.Context().Done() // the old process has found out that it is over
				if got := members[i].Share(); !got.same(before) {
					t.Errorf("%d had %v, and got %v", i, before, got)
				}
				told[i] = 1
				for j, o := range members {
					if got := o.told(); len(got) != told[j] {
						t.Errorf("while %d was restarted %d was told %v", i, j, got[told[j]:])
						told[j] = len(got)
					}
				}
			}
			// One does not come back.
			began := time.Now()
			if err := members[3].node.Leave(limit(t, time.Minute)); err != nil {
				t.Error(err)
			}
			members[0].await(t, "six indices", func() bool { return members[0].Share().Total == 6 })
			if took := time.Since(began); took < 30*time.Second || took > 32*time.Second {
				t.Errorf("its place was kept for %v, want 30 s", took)
			}
			for _, m := range members[:3] {
				m.node.Leave(limit(t, time.Minute))
			}
		})
	}
}

func TestClusterNotReady(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := in(t, s, "a", Config{Workers: 2, NotReady: true})
		if got := a.Share(); got.First != -1 || got.Total != 0 {
			t.Errorf("not ready, it has %v", got)
		}
		b := in(t, s, "b", Config{})
		a.await(t, "the other's index", func() bool { return a.Share().Total == 1 })
		if err := a.SetReady(limit(t, time.Minute), true); err != nil {
			t.Fatal(err)
		}
		a.awaitShare(t, time.Minute, 0, 2, 3)
		b.awaitShare(t, time.Minute, 2, 1, 3)
		if err := a.Drain(limit(t, time.Minute), nil); err != nil {
			t.Fatal(err)
		}
		b.awaitShare(t, time.Minute, 0, 1, 1)
		time.Sleep(time.Second)
		if got := a.told(); len(got) != 4 || got[3].First != -1 {
			t.Errorf("a was told %v", got)
		}
		read := make(chan Share, 16) // capacity: more than there are views
		go func() {
			defer close(read)
			for share := range a.Shares(t.Context()) {
				read <- share
			}
		}()
		if got := <-read; got != a.Share() {
			t.Errorf("Shares begins with %v, want %v", got, a.Share())
		}
		c := in(t, s, "c", Config{})
		time.Sleep(time.Second)
		if got := a.told(); len(got) != 5 || !got[4].same(Share{First: -1, Total: 2}) {
			t.Errorf("a has nothing, and another came: it was told %v", got)
		}
		if len(read) != 1 || !(<-read).same(Share{First: -1, Total: 2}) {
			t.Errorf("Shares gave something else than the new total, or %d more", len(read))
		}
		withdraw(t, a)
		if got := a.told(); len(got) != 5 {
			t.Errorf("a has left, and was told %v", got)
		}
		withdraw(t, b)
		withdraw(t, c)
	})
}

// A member that is cut off knows that its share may be outdated, before it loses it.
func TestClusterStale(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := in(t, s, "a", Config{})
		a.link.Cut()
		took := a.await(t, "stale", func() bool { return a.Share().Stale })
		if took < ttl/4 || took > ttl*7/10 {
			t.Errorf("stale after %v with a lease of %v", took, ttl)
		}
		if got := a.Share(); got.First != 0 || !a.Pin().Valid() {
			t.Errorf("stale, it has %v", got)
		}
		a.link.Heal()
		a.await(t, "fresh", func() bool { return !a.Share().Stale && a.Share().First == 0 })
		a.link.Cut()
		pin := a.Pin()
		a.await(t, "lost", func() bool { return a.Share().First == -1 })
		if a.Share().Stale || pin.Valid() || a.Pin().Valid() {
			t.Errorf("lost: %v", a.Share())
		}
		a.link.Heal()
		a.await(t, "back", func() bool { return a.Share().First == 0 })
		if pin.Valid() {
			t.Error("the pin is valid again after a loss")
		}
		time.Sleep(time.Second)
		if got := a.told(); len(got) != 3 {
			t.Errorf("it was told %v", got)
		}
		withdraw(t, a)
	})
}

func TestPin(t *testing.T) {
	h := newHub()
	a := h.join(t, "b", Config{})
	pin := a.g.Pin()
	h.publish()
	if !pin.Valid() || pin.Share.Epoch != 1 {
		t.Errorf("after a view that says the same: %v, Valid %v", pin.Share, pin.Valid())
	}
	b := h.join(t, "a", Config{})
	if pin.Valid() || pin.Share.First != 0 {
		t.Errorf("after a view that moved it: %v, Valid %v", pin.Share, pin.Valid())
	}
	leave(t, b)
	if pin.Valid() {
		t.Error("the share is as it was, and was another's meanwhile")
	}
	if pin = a.g.Pin(); !pin.Valid() {
		t.Error("a new pin is not valid")
	}
	leave(t, a)
	if pin.Valid() || a.g.Pin().Valid() {
		t.Error("a pin is valid after the end")
	}
}

// A member that a person evicts has nothing, until it is restored or comes anew; it
// stays in the group, and in a strict mode it stops first.
func TestClusterEvict(t *testing.T) {
	for _, cfg := range []Config{{Workers: 2}, {Workers: 2, Mode: StrictIndex}, {Workers: 2, Partitions: 40, MoveBudget: 4}} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			h := &holdings{by: map[int]string{}}
			if cfg.kind().strict() {
				h.t = t
			}
			a := in(t, s, "a", h.config(cfg, "a", 500*time.Millisecond))
			b := in(t, s, "b", h.config(cfg, "b", 0))
			person, err := fabric.Join(limit(t, time.Minute), fabric.Config{Cluster: "c", Passive: true, NATS: append(natstest.FastOptions(), nats.InProcessServer(s.Link()))})
			if err != nil {
				t.Fatal(err)
			}
			b.await(t, "a share", func() bool { return b.Share().Total == 4 && b.Share().First >= 0 })
			if err := Evict(limit(t, time.Minute), person, "g", "nobody", nil); !errors.Is(err, ErrNoMember) {
				t.Errorf("Evict of nobody = %v, want ErrNoMember", err)
			}
			var left []int
			if err := Evict(limit(t, time.Minute), person, "g", "a", func(n int) { left = append(left, n) }); err != nil {
				t.Fatal(err)
			}
			if len(left) == 0 || left[len(left)-1] != 0 {
				t.Errorf("kind %q: left %v, want 0 at the end", cfg.kind(), left)
			}
			b.await(t, "everything", func() bool {
				return b.Share().Total == 2 && len(b.Partitions().Mine()) == cfg.Partitions && b.Share().Workers == 2
			})
			time.Sleep(time.Second)
			for i, pid := range h.snapshot() {
				if pid != "b" {
					t.Errorf("kind %q: %s has %d after it was evicted", cfg.kind(), pid, i)
				}
			}
			if got := a.Share(); got.First != -1 || len(a.Members()) != 2 || a.Context().Err() != nil {
				t.Errorf("evicted, it has %v among %v", got, a.Members())
			}
			if err := Restore(limit(t, time.Minute), person, "g", "a"); err != nil {
				t.Fatal(err)
			}
			a.await(t, "its share", func() bool { return a.Share().Workers == 2 && a.Share().Total == 4 })
			if err := person.Leave(limit(t, time.Minute)); err != nil {
				t.Error(err)
			}
			withdraw(t, a)
			withdraw(t, b)
		})
	}
}

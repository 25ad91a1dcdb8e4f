package balance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// ttl is the lease of every node here.
const ttl = fabric.DefaultLease

func limit(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), d)
	t.Cleanup(cancel)
	return ctx
}

func logTo(t *testing.T, pid string) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", pid)
}

func nodeOn(t *testing.T, p nats.InProcessConnProvider, pid string) *fabric.Node {
	t.Helper()
	n, err := fabric.Join(limit(t, time.Minute), fabric.Config{
		Cluster: "c", PID: fabric.PID(pid), NATS: append(natstest.FastOptions(), nats.InProcessServer(p)), Logger: logTo(t, pid),
	})
	if err != nil {
		t.Fatalf("join as %s: %v", pid, err)
	}
	t.Cleanup(func() { n.Leave(limit(t, time.Second)) })
	return n
}

// A seen is what one member of a group was told.
type seen struct {
	*Group
	node *fabric.Node
	link *natstest.Link

	mu    sync.Mutex // guards calls
	calls []Share
}

func (m *seen) told() []Share {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

// in joins the group g under pid.
func in(t *testing.T, s *natstest.Server, pid string, cfg Config) *seen {
	t.Helper()
	l := s.Link()
	return inBy(t, nodeOn(t, l, pid), l, cfg)
}

func inBy(t *testing.T, n *fabric.Node, l *natstest.Link, cfg Config) *seen {
	t.Helper()
	m := &seen{node: n, link: l}
	cfg.Group = "g"
	cfg.Logger = logTo(t, string(n.PID()))
	cfg.OnChange = func(s Share) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.calls = append(m.calls, s)
	}
	g, err := Join(limit(t, time.Minute), n, cfg)
	if err != nil {
		t.Fatalf("join g as %s: %v", n.PID(), err)
	}
	m.Group = g
	return m
}

// awaitShare waits until m's share is First, Workers of Total.
func (m *seen) awaitShare(t *testing.T, most time.Duration, first, workers, total int) time.Duration {
	t.Helper()
	began := time.Now()
	for s, err := range m.Shares(limit(t, most)) {
		if err != nil {
			t.Fatalf("%s after %v: %v (%v), want First %d, Workers %d, Total %d", m.node.PID(), most, m.Share(), err, first, workers, total)
		}
		if s.First == first && s.Workers == workers && s.Total == total {
			break
		}
	}
	return time.Since(began)
}

func withdraw(t *testing.T, m *seen) {
	t.Helper()
	if err := m.Leave(limit(t, 10*time.Second)); err != nil {
		t.Errorf("Leave: %v", err)
	}
}

// Defect 1: a passive member counted as a worker.
func TestClusterPassiveAddsNoWorkers(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		p := in(t, s, "a", Config{Passive: true})
		if got := p.Share(); got.First != -1 || got.Total != 0 {
			t.Errorf("share of a passive member alone = %v, want none of 0", got)
		}
		b := in(t, s, "b", Config{Workers: 3})
		if got := b.Share(); got.First != 0 || got.Workers != 3 || got.Total != 3 {
			t.Errorf("share = %v, want 0..2 of 3", got)
		}
		p.awaitShare(t, time.Minute, -1, 0, 3)
		if got := p.Members(); len(got) != 2 || got[0].First != -1 || got[1].Workers != 3 {
			t.Errorf("Members = %v", got)
		}
		if _, err := Join(limit(t, time.Minute), nodeOn(t, s.Link(), "w"), Config{Group: "g", Workers: -1}); !errors.Is(err, ErrConfig) {
			t.Errorf("Join with -1 workers = %v, want ErrConfig", err)
		}
		withdraw(t, p)
		withdraw(t, b)
	})
}

// Defect 2: once passive, passive for ever.
func TestClusterLeaveResets(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		p := in(t, s, "a", Config{Passive: true})
		withdraw(t, p)
		a := inBy(t, p.node, p.link, Config{Workers: 2})
		if got := a.Share(); got.First != 0 || got.Workers != 2 || got.Total != 2 {
			t.Errorf("share after a passive membership = %v, want 0..1 of 2", got)
		}
		withdraw(t, a)
		a = inBy(t, a.node, a.link, Config{})
		a.awaitShare(t, time.Minute, 0, 1, 1) // not the two workers of before
		withdraw(t, a)
		for range 5 { // and passive again, where the view has it as active still
			p = inBy(t, a.node, a.link, Config{Passive: true})
			time.Sleep(time.Second)
			withdraw(t, p)
			for _, s := range p.told() {
				if s.First >= 0 {
					t.Errorf("a passive member was told %v", s)
				}
			}
			a = inBy(t, p.node, p.link, Config{Workers: 2})
			withdraw(t, a)
		}
	})
}

// Defect 3: the callback was told something else than whoever asked. Defect 4: the
// number of workers was the one asked for, the index that of before.
func TestClusterSharesAreWhole(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b, c := in(t, s, "a", Config{Workers: 2}), in(t, s, "b", Config{}), in(t, s, "c", Config{})
		a.awaitShare(t, time.Minute, 0, 2, 4) // each hears of it by itself
		b.awaitShare(t, time.Minute, 2, 1, 4)
		c.awaitShare(t, time.Minute, 3, 1, 4)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for _, m := range []*seen{a, b, c} {
			wg.Go(func() {
				for {
					if got := m.Share(); got.First >= 0 && got.First+got.Workers > got.Total {
						t.Errorf("%s: %v", m.node.PID(), got)
					}
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
				}
			})
		}
		for _, n := range []int{7, 1, 4} {
			before := a.Share()
			if err := a.SetWorkers(limit(t, time.Minute), n); err != nil {
				t.Fatal(err)
			}
			if got := a.Share(); !got.same(before) && got.Workers != n {
				t.Errorf("share = %v right after SetWorkers(%d), want the former until a view grants it", got, n)
			}
			a.awaitShare(t, time.Minute, 0, n, n+2)
			b.awaitShare(t, time.Minute, n, 1, n+2)
			c.awaitShare(t, time.Minute, n+1, 1, n+2)
		}
		close(stop)
		wg.Wait()
		time.Sleep(time.Second)
		for _, m := range []*seen{a, b, c} {
			if calls := m.told(); !calls[len(calls)-1].same(m.Share()) {
				t.Errorf("%s was told %v last, Share says %v", m.node.PID(), calls[len(calls)-1], m.Share())
			}
			withdraw(t, m)
		}
	})
}

// Defect 5: a new number of workers was seen with the next refresh. Defect 7:
// changes between two reads were missed. They are seen within a settle window,
// by everybody, however they follow each other.
func TestClusterChangesAreSeenAtOnce(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := in(t, s, "a", Config{}), in(t, s, "b", Config{})
		a.awaitShare(t, time.Minute, 0, 1, 2)
		for i := range 20 {
			time.Sleep(time.Duration(i) * 37 * time.Millisecond)
			n := 1 + i%5
			if err := a.SetWorkers(limit(t, time.Minute), n+5); err != nil {
				t.Fatal(err)
			}
			if err := a.SetWorkers(limit(t, time.Minute), n); err != nil {
				t.Fatal(err)
			}
			if took := b.awaitShare(t, time.Minute, n, 1, n+1); took > DefaultSettle+50*time.Millisecond {
				t.Errorf("SetWorkers(%d) was seen after %v, want a settle window of %v", n, took, DefaultSettle)
			}
		}
		withdraw(t, a)
		withdraw(t, b)
	})
}

// Defects 6 and 8: a member that was cut off kept its index, and never came back.
func TestClusterCutMemberLosesItsIndexAndComesBack(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := in(t, s, "a", Config{Workers: 2}), in(t, s, "b", Config{})
		b.awaitShare(t, time.Minute, 2, 1, 3)
		inc := a.node.Incarnation()
		a.link.Cut()
		began := time.Now()
		a.awaitShare(t, time.Minute, -1, 0, 1)
		if took := time.Since(began); took > ttl {
			t.Errorf("a has its index %v after it was cut off, want less than the lease", took)
		}
		if got := b.Share(); got.First != 2 {
			t.Errorf("b has %v before a's lease has run out", got)
		}
		b.awaitShare(t, time.Minute, 0, 1, 1)
		a.link.Heal()
		b.awaitShare(t, time.Minute, 2, 1, 3)
		a.awaitShare(t, time.Minute, 0, 2, 3)
		if a.node.Incarnation() <= inc {
			t.Error("a came back under its old incarnation")
		}
		none := 0
		for _, c := range a.told() {
			if c.First < 0 {
				none++
			}
		}
		if none != 1 {
			t.Errorf("a was told %v: -1 %d times, want once", a.told(), none)
		}
		withdraw(t, a)
		withdraw(t, b)
	})
}

// Defect 9: two processes under one id had one index.
func TestClusterDuplicates(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := in(t, s, "a", Config{})
		_, err := fabric.Join(limit(t, time.Minute), fabric.Config{Cluster: "c", PID: "a", NATS: []nats.Option{nats.InProcessServer(s.Link())}})
		if !errors.Is(err, fabric.ErrPIDInUse) {
			t.Errorf("a second node under the PID = %v, want ErrPIDInUse", err)
		}
		if _, err := Join(limit(t, time.Minute), a.node, Config{Group: "g"}); !errors.Is(err, ErrJoined) {
			t.Errorf("the same node again = %v, want ErrJoined", err)
		}
		// Another process takes the PID while the first is cut off.
		a.link.Cut()
		a2 := in(t, s, "a", Config{Workers: 4})
		if got := a.Share(); got.First != -1 {
			t.Errorf("the first has %v when another process has the PID", got)
		}
		a.link.Heal()
		<-a.Context().Done()
		if cause := context.Cause(a.Context()); !errors.Is(cause, fabric.ErrPIDInUse) {
			t.Errorf("the first ends with %v, want ErrPIDInUse", cause)
		}
		time.Sleep(time.Minute)
		if got := a2.Share(); got.First != 0 || got.Total != 4 {
			t.Errorf("the second has %v", got)
		}
		withdraw(t, a2)
	})
}

// Defect 12: not every engine told -1 on leaving. Leave of the group and of the node
// do, once, after which nothing comes.
func TestClusterLeaveTellsOnce(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := in(t, s, "a", Config{}), in(t, s, "b", Config{Workers: 2})
		a.awaitShare(t, time.Minute, 0, 1, 3)
		withdraw(t, a)
		withdraw(t, a)
		b.awaitShare(t, time.Minute, 0, 2, 2)
		if err := b.node.Leave(limit(t, time.Minute)); err != nil {
			t.Error(err)
		}
		if cause := context.Cause(b.Context()); !errors.Is(cause, fabric.ErrClosed) {
			t.Errorf("b's group ends with %v, want fabric.ErrClosed", cause)
		}
		time.Sleep(time.Minute)
		for _, m := range []*seen{a, b} {
			calls := m.told()
			if n := len(calls); n < 2 || calls[n-1].First != -1 || calls[n-2].First < 0 {
				t.Errorf("%s was told %v, want -1 once, at the end", m.node.PID(), calls)
			}
		}
	})
}

// Something overwrites a member's wish. It is still here, and must not stay without
// an index.
func TestClusterGarbageOverAWish(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b, p := in(t, s, "a", Config{}), in(t, s, "b", Config{Workers: 2}), in(t, s, "p", Config{Passive: true})
		nc := s.Connect()
		for _, garbage := range []string{"garbage", "{}", "", `{"key":"g.g.a","pid":"a","inc":1,"workers":9}`, `{"key":"g.g.a","pid":"b","inc":1,"workers":9}`} {
			for _, pid := range []string{"a", "p", "zz"} {
				if _, err := nc.Request("$KV.fab_c_production.g.g."+pid, []byte(garbage), time.Second); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(10 * time.Second)
			for _, m := range []struct {
				*seen
				first, workers int
			}{{a, 0, 1}, {b, 1, 2}, {p, -1, 0}} {
				if got := m.Share(); got.First != m.first || got.Workers != m.workers || got.Total != 3 {
					t.Errorf("after %q in its key %s has %v, want %d..+%d of 3", garbage, m.node.PID(), got, m.first, m.workers)
				}
			}
		}
	})
}

// A tap is a way to a server that looks at what the client writes.
type tap struct {
	*natstest.Link
	write func([]byte)
}

type tapped struct {
	net.Conn
	write func([]byte)
}

func (t tap) InProcessConn() (net.Conn, error) {
	c, err := t.Link.InProcessConn()
	return &tapped{c, t.write}, err
}

func (c *tapped) Write(b []byte) (int, error) {
	c.write(b)
	return c.Conn.Write(b)
}

// A member repeats its wish, and is cut off while it does: its share must end with
// its lease all the same.
func TestClusterCutWhileRepeatingAWish(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		link := s.Link()
		var armed atomic.Bool
		n := nodeOn(t, tap{link, func(b []byte) {
			if armed.Load() && bytes.Contains(b, []byte("HPUB $KV.fab_c_production.g.g.a ")) {
				link.Cut()
			}
		}}, "a")
		a := inBy(t, n, link, Config{})
		link.CutReplies()
		if err := a.SetWorkers(limit(t, 100*time.Millisecond), 5); err == nil {
			t.Fatal("SetWorkers succeeded without an answer")
		}
		link.Kill() // and the wish did not arrive, perhaps
		armed.Store(true)
		link.Heal()
		time.Sleep(2 * time.Second)
		armed.Store(true)
		nc := s.Connect()
		// The wish with one worker is the record again: a late write.
		wish := fmt.Sprintf(`{"key":"g.g.a","pid":"a","inc":%d,"workers":2}`, n.Incarnation())
		if _, err := nc.Request("$KV.fab_c_production.g.g.a", []byte(wish), time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * ttl)
		if got := a.Share(); got.First != -1 {
			t.Errorf("two leases after it was cut off the member has %v", got)
		}
		armed.Store(false)
		link.Heal()
		a.awaitShare(t, time.Minute, 0, 5, 5)
	})
}

func TestClusterManyJoinsMakeFewViews(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		first := in(t, s, "first", Config{})
		const n = 100
		nodes := make([]*fabric.Node, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				var err error
				nodes[i], err = fabric.Join(limit(t, time.Minute), fabric.Config{
					Cluster: "c", PID: fabric.PID(fmt.Sprint("n", i)), NATS: []nats.Option{nats.InProcessServer(s.Link())}, Inbox: fabric.Inbox{Off: true},
				})
				if err != nil {
					t.Errorf("join: %v", err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		time.Sleep(10 * time.Second)
		before := first.Share().Epoch
		began := time.Now()
		for i := range n {
			wg.Go(func() {
				if _, err := Join(limit(t, time.Minute), nodes[i], Config{Group: "g"}); err != nil {
					t.Errorf("join g: %v", err)
				}
			})
		}
		wg.Wait()
		first.awaitShare(t, time.Minute, 0, 1, n+1)
		if got := first.Share().Epoch - before; got > 3 || time.Since(began) > 2*time.Second {
			t.Errorf("%d views of %d joins at once in %v, want at most 3 in 2s", got, n, time.Since(began))
		}
		for _, node := range nodes {
			wg.Go(func() {
				if err := node.Leave(limit(t, 20*time.Second)); err != nil {
					t.Errorf("Leave: %v", err)
				}
			})
		}
		wg.Wait()
		first.awaitShare(t, time.Minute, 0, 1, 1)
	})
}

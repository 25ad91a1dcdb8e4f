package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

const ttl = fabric.DefaultLease

func leave(t *testing.T, n *fabric.Node) {
	t.Helper()
	if err := n.Leave(within(t, 30*time.Second)); err != nil {
		t.Errorf("Leave: %v", err)
	}
}

// crash ends the process behind n without a word.
func crash(n *fabric.Node, l *natstest.Link) {
	l.Cut()
	l.Kill()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	n.Leave(ctx) // fails: it can write nothing
}

// write stores what a person, or another program, might.
func write(t *testing.T, nc *nats.Conn, key, value string) {
	t.Helper()
	if _, err := nc.Request("$KV.fab_c_production."+key, []byte(value), time.Second); err != nil {
		t.Fatal(err)
	}
}

func deleteBucket(t *testing.T, s *natstest.Server) {
	t.Helper()
	if _, err := s.Connect().Request("$JS.API.STREAM.DELETE.KV_fab_c_production", nil, time.Second); err != nil {
		t.Fatal(err)
	}
}

// A fold is what a reader of Changes believes.
type fold struct {
	mu       sync.Mutex // guards the fields below
	members  map[fabric.PID]fabric.Member
	suspects map[fabric.PID]bool
	epoch    uint64
	synced   bool
	wrong    []string
}

func (f *fold) apply(c fabric.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	complain := func(format string, args ...any) {
		f.wrong = append(f.wrong, fmt.Sprintf("%v of %s %d in epoch %d: ", c.Kind, c.Member.PID, c.Member.Incarnation, c.Epoch)+fmt.Sprintf(format, args...))
	}
	if c.Epoch < f.epoch {
		complain("after epoch %d", f.epoch)
	}
	f.epoch = c.Epoch
	old, known := f.members[c.Member.PID]
	switch c.Kind {
	case fabric.Synced:
		if f.synced {
			complain("twice")
		}
		f.synced = true
	case fabric.Joined:
		if known {
			complain("it is there already, as %d", old.Incarnation)
		}
		f.members[c.Member.PID] = c.Member
	case fabric.Updated:
		if !known || old.Incarnation != c.Member.Incarnation || maps.Equal(old.Meta, c.Member.Meta) {
			complain("was %+v", old)
		}
		f.members[c.Member.PID] = c.Member
	case fabric.Left, fabric.Failed:
		if !known || old.Incarnation != c.Member.Incarnation {
			complain("was %+v", old)
		}
		delete(f.members, c.Member.PID)
	case fabric.Suspected, fabric.Alive:
		if !known || old.Incarnation != c.Member.Incarnation || f.suspects[c.Member.PID] == (c.Kind == fabric.Suspected) {
			complain("was %+v", old)
		}
	default:
		complain("of no known kind")
	}
	if c.Kind != fabric.Updated {
		f.suspects[c.Member.PID] = c.Kind == fabric.Suspected
	}
	if !f.synced && c.Kind != fabric.Joined {
		complain("before Synced")
	}
}

// equals says how f differs from v, or "".
func (f *fold) equals(v fabric.View) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := map[fabric.PID]fabric.Member{}
	for _, m := range v.Members {
		seen[m.PID] = m
	}
	same := func(a, b fabric.Member) bool {
		return a.PID == b.PID && a.Incarnation == b.Incarnation && maps.Equal(a.Meta, b.Meta)
	}
	if !maps.EqualFunc(seen, f.members, same) {
		return fmt.Sprintf("changes add up to %v, the view is %v", f.members, seen)
	}
	return ""
}

// follow folds n's changes until n ends. pause makes it a slow reader.
func follow(n *fabric.Node, pause time.Duration) *fold {
	f := &fold{members: map[fabric.PID]fabric.Member{}, suspects: map[fabric.PID]bool{}}
	go func() {
		for c, err := range n.Changes(context.Background()) {
			if err != nil {
				return
			}
			f.apply(c)
			time.Sleep(pause)
		}
	}()
	return f
}

// Members come, go, crash, come back, change their meta, and are cut off; the server
// restarts. Whatever a reader of Changes missed, it ends with what the view says, and
// all views are the same.
func TestChangesAddUpToTheView(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		r := rand.New(rand.NewPCG(seed, 0))
		type member struct {
			node *fabric.Node
			link *natstest.Link
		}
		quick, slow := join(t, s, "quick"), join(t, s, "slow")
		watcher := join(t, s, "watcher", func(c *fabric.Config) { c.Passive = true })
		folds := map[*fabric.Node]*fold{
			quick: follow(quick, 0), slow: follow(slow, 3*time.Second), watcher: follow(watcher, 0),
		}
		here := map[string]member{}
		for range 150 {
			time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
			pid := fmt.Sprint("p", r.IntN(8))
			m, ok := here[pid]
			if !ok {
				n, l := joinLink(t, s, pid)
				here[pid] = member{n, l}
				continue
			}
			switch n := r.IntN(100); {
			case n < 30:
				leave(t, m.node)
				delete(here, pid)
			case n < 50:
				crash(m.node, m.link)
				delete(here, pid)
			case n < 75:
				if err := m.node.SetMeta(within(t, 20*time.Second), map[string]string{"n": fmt.Sprint(n)}); err != nil {
					t.Errorf("SetMeta: %v", err)
				}
			case n < 90:
				m.link.Cut()
				time.Sleep(time.Duration(r.IntN(12000)) * time.Millisecond)
				m.link.Heal()
				time.Sleep(5 * time.Second)
			case n < 95:
				s.Restart()
				synctest.Wait()
				time.Sleep(5 * time.Second)
			default:
				m.link.Kill()
				time.Sleep(time.Second)
			}
		}
		time.Sleep(time.Minute)
		for n, f := range folds {
			if diff := f.equals(n.View()); diff != "" {
				t.Errorf("%s: %s", n.PID(), diff)
			}
			for _, wrong := range f.wrong {
				t.Errorf("%s: %s", n.PID(), wrong)
			}
		}
		want := quick.View()
		if len(want.Members) != len(here)+2 {
			t.Errorf("the view has %d members, want %d", len(want.Members), len(here)+2)
		}
		for _, m := range here {
			folds[m.node] = nil
		}
		for n := range folds {
			if got := n.View(); got.Epoch != want.Epoch || len(got.Members) != len(want.Members) {
				t.Errorf("%s is at epoch %d with %d members, quick at %d with %d", n.PID(), got.Epoch, len(got.Members), want.Epoch, len(want.Members))
			}
		}
	})
}

func TestFoldFindsWhatIsPlanted(t *testing.T) {
	member := func(pid fabric.PID, inc uint64) fabric.Member { return fabric.Member{PID: pid, Incarnation: inc} }
	for name, changes := range map[string][]fabric.Change{
		"joined twice":              {{Kind: fabric.Synced}, {Kind: fabric.Joined, Member: member("a", 1)}, {Kind: fabric.Joined, Member: member("a", 2)}},
		"left, never joined":        {{Kind: fabric.Synced}, {Kind: fabric.Left, Member: member("a", 1)}},
		"another incarnation fails": {{Kind: fabric.Joined, Member: member("a", 1)}, {Kind: fabric.Synced}, {Kind: fabric.Failed, Member: member("a", 2)}},
		"update without a change":   {{Kind: fabric.Joined, Member: member("a", 1)}, {Kind: fabric.Synced}, {Kind: fabric.Updated, Member: member("a", 1)}},
		"leave before Synced":       {{Kind: fabric.Joined, Member: member("a", 1)}, {Kind: fabric.Left, Member: member("a", 1)}},
		"Synced twice":              {{Kind: fabric.Synced}, {Kind: fabric.Synced}},
		"epoch goes back":           {{Kind: fabric.Synced, Epoch: 2}, {Kind: fabric.Joined, Member: member("a", 1), Epoch: 1}},
	} {
		f := &fold{members: map[fabric.PID]fabric.Member{}, suspects: map[fabric.PID]bool{}}
		for _, c := range changes {
			f.apply(c)
		}
		if len(f.wrong) == 0 {
			t.Errorf("%s: passed", name)
		}
	}
}

func TestSetMeta(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		await(t, b, "a", "b")
		f := follow(b, 0)
		began := time.Now()
		meta := map[string]string{"k": "v"}
		if err := a.SetMeta(within(t, time.Minute), meta); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("SetMeta took %v, want a round trip", took)
		}
		meta["k"] = "changed by the caller"
		time.Sleep(2 * time.Second)
		if got := b.View().Members[0].Meta["k"]; got != "v" {
			t.Errorf("a's meta as b sees it = %q, want v", got)
		}
		if diff := f.equals(b.View()); diff != "" {
			t.Error(diff)
		}
		_, ok := errors.AsType[*fabric.ConfigError](a.SetMeta(t.Context(), map[string]string{"k": strings.Repeat("x", fabric.MaxMeta)}))
		if !ok {
			t.Error("meta that is too large is taken")
		}
		passive := join(t, s, "w", func(c *fabric.Config) { c.Passive = true })
		if err := passive.SetMeta(t.Context(), nil); !errors.Is(err, fabric.ErrPassive) {
			t.Errorf("SetMeta of a passive node = %v, want ErrPassive", err)
		}
		leave(t, a)
		if err := a.SetMeta(t.Context(), nil); !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("SetMeta after Leave = %v, want ErrClosed", err)
		}
	})
}

func TestJoinUnderAPIDThatWasHeld(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		join(t, s, "w")
		a := join(t, s, "a")
		began := time.Now()
		_, err := fabric.Join(within(t, time.Minute), fabric.Config{Cluster: "c", PID: "a", NATS: options(s.Link())})
		if took := time.Since(began); !errors.Is(err, fabric.ErrPIDInUse) || took > ttl*3/8+100*time.Millisecond {
			t.Errorf("Join = %v after %v, want ErrPIDInUse by the first renewal (%v)", err, took, ttl*3/8)
		}
		leave(t, a)
		began = time.Now()
		a, link := joinLink(t, s, "a")
		if took := time.Since(began); took > 200*time.Millisecond {
			t.Errorf("joined %v after the holder left, want at once", took)
		}
		crash(a, link)
		began = time.Now()
		join(t, s, "a")
		if took := time.Since(began); took < ttl/2 || took > ttl+ttl/50+500*time.Millisecond {
			t.Errorf("joined %v after the holder crashed, want after its lease", took)
		}
	})
}

func TestJoinRetriesUntilItsContextEnds(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		s.Stop()
		synctest.Wait()
		_, err := fabric.Join(within(t, time.Minute), fabric.Config{Cluster: "c", PID: "a", NATS: options(s.Link())})
		if !errors.Is(err, fabric.ErrConnect) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Join without a server = %v, want ErrConnect and ctx's cause", err)
		}
		joined := make(chan error, 1)
		go func() {
			n, err := fabric.Join(within(t, time.Hour), fabric.Config{Cluster: "c", PID: "a", NATS: options(s.Link())})
			if err == nil {
				err = n.Leave(within(t, time.Minute))
			}
			joined <- err
		}()
		time.Sleep(10 * time.Minute)
		s.Start()
		if err := <-joined; err != nil {
			t.Errorf("Join when the server is there again = %v", err)
		}
	})
}

func TestConnectionClosedForGood(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc := s.Connect()
		a, err := fabric.Join(within(t, time.Minute), fabric.Config{Cluster: "c", PID: "a", Conn: nc, Logger: logger(t, "a")})
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
		<-a.Context().Done()
		if cause := context.Cause(a.Context()); !errors.Is(cause, fabric.ErrConnClosed) {
			t.Errorf("cause = %v, want ErrConnClosed", cause)
		}
		if err := a.Leave(within(t, time.Minute)); err != nil {
			t.Logf("Leave: %v", err)
		}
	})
}

func TestBorrowedConnStaysOpen(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc := s.Connect()
		_, err := fabric.Join(within(t, time.Minute), fabric.Config{Cluster: "c", PID: "a", Conn: nc, NATS: options(s.Link())})
		if e, ok := errors.AsType[*fabric.ConfigError](err); !ok || e.Field != "NATS" {
			t.Errorf("Join with Conn and NATS = %v, want a *ConfigError about NATS", err)
		}
		before := nc.NumSubscriptions()
		a, err := fabric.Join(within(t, time.Minute), fabric.Config{Cluster: "c", PID: "a", Conn: nc, Logger: logger(t, "a")})
		if err != nil {
			t.Fatal(err)
		}
		b := join(t, s, "b")
		await(t, b, "a", "b")
		leave(t, a)
		await(t, b, "b")
		if nc.IsClosed() {
			t.Error("Leave closed the caller's connection")
		}
		time.Sleep(time.Second)
		if got := nc.NumSubscriptions(); got > before+1 { // nats.go's own, for requests
			t.Errorf("%d subscriptions after Leave, %d before Join", got, before)
		}
	})
}

func TestLeaveIsIdempotent(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { leave(t, a) })
		}
		wg.Wait()
		leave(t, a)
		if cause := context.Cause(a.Context()); cause != fabric.ErrClosed {
			t.Errorf("cause = %v, want ErrClosed", cause)
		}
		if err := a.Send(t.Context(), "b", nil); !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("Send after Leave = %v, want ErrClosed", err)
		}
		for _, err := range a.Changes(t.Context()) {
			if err != nil && !errors.Is(err, fabric.ErrClosed) {
				t.Errorf("Changes after Leave end with %v, want ErrClosed", err)
			}
		}
	})
}

// Over a cut link Leave gives up with its context and writes nothing.
func TestLeaveOverACutLink(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, link := joinLink(t, s, "a")
		b := join(t, s, "b")
		await(t, b, "a", "b")
		f := follow(b, 0)
		link.Cut()
		began := time.Now()
		if err := a.Leave(within(t, time.Second)); err == nil {
			t.Error("Leave over a cut link succeeded")
		}
		if took := time.Since(began); took > 1100*time.Millisecond {
			t.Errorf("Leave returned after %v, its context ended after 1s", took)
		}
		await(t, b, "b")
		if took := time.Since(began); took < ttl/2 || took > ttl+ttl/50+500*time.Millisecond {
			t.Errorf("seen as gone after %v, want after the lease", took)
		}
		synctest.Wait()
		if diff := f.equals(b.View()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestManyJoinsMakeFewViews(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		first := join(t, s, "first")
		time.Sleep(10 * time.Second)
		before := first.View().Epoch
		const n = 100
		nodes := make([]*fabric.Node, n)
		var wg sync.WaitGroup
		began := time.Now()
		for i := range n {
			wg.Go(func() {
				var err error
				nodes[i], err = fabric.Join(within(t, time.Minute), fabric.Config{
					Cluster: "c", PID: fabric.PID(fmt.Sprint("n", i)), NATS: []nats.Option{nats.InProcessServer(s.Link())}, Inbox: fabric.Inbox{Off: true},
				})
				if err != nil {
					t.Errorf("join: %v", err)
				}
			})
		}
		wg.Wait()
		took := time.Since(began)
		if t.Failed() {
			return
		}
		if got := first.View(); len(got.Members) != n+1 || got.Epoch-before > 3 || took > 2*time.Second {
			t.Errorf("%d members after %d views and %v, want %d after at most 3 and 2s", len(got.Members), got.Epoch-before, took, n+1)
		}
		before = first.View().Epoch
		for _, node := range nodes {
			wg.Go(func() { leave(t, node) })
		}
		wg.Wait()
		await(t, first, "first")
		if got := first.View().Epoch; got-before > 3 {
			t.Errorf("%d views of %d leaves at once, want at most 3", got-before, n)
		}
	})
}

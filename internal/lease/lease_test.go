package lease_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

const ttl = 5 * time.Second

// A proc is a process of the test: a connection that can be cut, and a session.
type proc struct {
	*lease.Session
	link *natstest.Link
	nc   *nats.Conn
}

func connect(t *testing.T, s *natstest.Server) (*natstest.Link, *nats.Conn) {
	t.Helper()
	link := s.Link()
	opts := append(natstest.FastOptions(), nats.InProcessServer(link), nats.ReconnectBufSize(-1))
	nc, err := nats.Connect("", opts...)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(nc.Close)
	return link, nc
}

func bucket(t *testing.T, nc *nats.Conn) *kv.Bucket {
	return kv.New(nc, kv.Config{
		Name: "fab_test_production", Feed: "fab.test.production.kv", Replicas: 1, Lease: ttl,
		Alone:  func(context.Context) (bool, error) { return true, nil },
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
}

func start(t *testing.T, s *natstest.Server, pid string) *proc {
	t.Helper()
	p, err := tryStart(t, s, pid)
	if err != nil {
		t.Fatalf("start %s: %v", pid, err)
	}
	return p
}

func tryStart(t *testing.T, s *natstest.Server, pid string) (*proc, error) {
	t.Helper()
	link, nc := connect(t, s)
	b := bucket(t, nc)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := b.Open(ctx); err != nil {
		t.Fatalf("open: %v", err)
	}
	session, err := lease.Start(ctx, b, lease.Config{
		PID: pid, Host: "h-" + pid, Lease: ttl,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("proc", pid),
	})
	if err != nil {
		return nil, err
	}
	return &proc{session, link, nc}, nil
}

// crash ends the process without a word: its link is gone for good.
func (p *proc) crash() {
	p.link.Cut()
	p.Fail(errors.New("crashed"))
	p.Leave(context.Background())
	p.nc.Close()
}

func (p *proc) leave(t *testing.T) {
	t.Helper()
	if err := p.Leave(t.Context()); err != nil {
		t.Errorf("Leave: %v", err)
	}
}

func TestPIDIsHeldByOneProcess(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := start(t, s, "a")
		began := time.Now()
		_, err := tryStart(t, s, "a")
		held, ok := errors.AsType[*lease.HeldError](err)
		if !ok || held.PID != "a" || held.Host != "h-a" || held.Since.IsZero() {
			t.Fatalf("second start = %v, want a *HeldError that says who and where", err)
		}
		if took := time.Since(began); took > ttl*3/8+100*time.Millisecond {
			t.Errorf("refused after %v, want by the first renewal (%v)", took, ttl*3/8)
		}
		a.leave(t)
		began = time.Now()
		b := start(t, s, "a")
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Errorf("taken %v after the holder left, want at once", took)
		}
		b.leave(t)
	})
}

func TestPIDOfACrashedProcessIsTakenAfterItsLease(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := start(t, s, "a")
		st, _ := a.State()
		a.crash()
		began := time.Now()
		b := start(t, s, "a")
		if took := time.Since(began); took < ttl || took > ttl+ttl/50+200*time.Millisecond {
			t.Errorf("taken after %v, want after the lease of %v", took, ttl)
		}
		st2, _ := b.State()
		if st2.Hold.Incarnation <= st.Hold.Incarnation {
			t.Errorf("incarnation %d after %d, want a higher one", st2.Hold.Incarnation, st.Hold.Incarnation)
		}
		b.leave(t)
	})
}

func TestClaimPassesOnReleaseAtOnceAndOnCrashAfterTheLease(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b, c := start(t, s, "a"), start(t, s, "b"), start(t, s, "c")
		ga, err := a.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		won := make(chan *lease.Grant, 2)
		for _, p := range []*proc{b, c} {
			go func() {
				g, err := p.Claim("c.e.x").Acquire(t.Context(), 0)
				if err != nil {
					t.Errorf("Acquire: %v", err)
				}
				won <- g
			}()
		}
		time.Sleep(30 * time.Second)
		if !ga.Valid() {
			t.Fatal("the first grant ended by itself")
		}
		select {
		case <-won:
			t.Fatal("two grants at once")
		default:
		}
		began := time.Now()
		if err := ga.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		g2 := <-won
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Errorf("handed over in %v, want at once", took)
		}
		if g2.Term != ga.Term+1 || g2.Token <= ga.Token {
			t.Errorf("second grant has term %d, token %d; the first had %d, %d", g2.Term, g2.Token, ga.Term, ga.Token)
		}
		loser, winner := b, c
		if st, _ := b.State(); st.Hold.Context(0) != nil && g2.Valid() {
			h, _ := a.Holder(t.Context(), "c.e.x")
			if h.PID == "b" {
				loser, winner = c, b
			}
		}
		began = time.Now()
		winner.crash()
		g3 := <-won
		if took := time.Since(began); took < ttl*5/8-100*time.Millisecond || took > ttl+ttl/50+200*time.Millisecond {
			t.Errorf("taken %v after the crash, want within a lease of %v", took, ttl)
		}
		if g2.Valid() {
			t.Error("the crashed holder's grant is still valid when the next one begins")
		}
		if err := g3.Release(t.Context()); err != nil {
			t.Error(err)
		}
		loser.leave(t)
		a.leave(t)
	})
}

func TestCutHolderStopsBeforeAnotherBegins(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := start(t, s, "a"), start(t, s, "b")
		ga, err := a.Claim("c.e.x").Acquire(t.Context(), 500*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		ga.ReleaseWhenLost()
		ended := make(chan time.Time, 1)
		context.AfterFunc(ga.Context(), func() { ended <- time.Now() })
		a.link.Cut()
		gb, err := b.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case at := <-ended:
			if early := time.Since(at); early < 500*time.Millisecond {
				t.Errorf("the cut holder's context ended %v before the next grant, want its grace at least", early)
			}
		default:
			t.Error("the cut holder's context lives when the next grant begins")
		}
		if cause := context.Cause(ga.Context()); !errors.Is(cause, lease.ErrLost) {
			t.Errorf("cause = %v, want ErrLost", cause)
		}
		a.link.Heal()
		hold, err := a.Held(t.Context())
		if err != nil {
			t.Fatalf("a does not come back: %v", err)
		}
		if !gb.Valid() || hold.Incarnation == 0 {
			t.Error("the return of the cut holder ended the other's grant")
		}
		a.leave(t)
		b.leave(t)
	})
}

// A store that is away for longer than a lease makes every hold lapse; when it is
// back each incarnation goes on, and nobody is ended.
func TestOutageLongerThanTheLeaseEndsNobody(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		procs := []*proc{start(t, s, "a"), start(t, s, "b"), start(t, s, "c")}
		var before []uint64
		for _, p := range procs {
			st, _ := p.State()
			before = append(before, st.Hold.Incarnation)
		}
		g, err := procs[0].Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		g.ReleaseWhenLost()
		next := make(chan *lease.Grant, 1)
		go func() {
			g, err := procs[1].Claim("c.e.x").Acquire(t.Context(), 0)
			if err != nil {
				t.Errorf("Acquire: %v", err)
			}
			next <- g
		}()
		s.Stop()
		time.Sleep(3 * ttl)
		if g.Valid() {
			t.Error("a grant is valid three leases after the last renewal")
		}
		s.Start()
		for i, p := range procs {
			hold, err := p.Held(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if hold.Incarnation != before[i] {
				t.Errorf("%s has incarnation %d after the outage, %d before: it was ended", p.PID(), hold.Incarnation, before[i])
			}
		}
		g2 := <-next // the lost grant's claim is given back
		g2.Release(t.Context())
		for _, p := range procs {
			p.leave(t)
		}
	})
}

func TestAckLostAfterTheWriteIsResolved(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := start(t, s, "a"), start(t, s, "b")
		a.link.CutReplies()
		got := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		go func() {
			_, err := a.Claim("c.e.x").Acquire(ctx, 0)
			got <- err
		}()
		if err := <-got; err == nil {
			t.Fatal("Acquire succeeded without an answer")
		}
		a.link.Heal()
		// Whether or not a's write landed, the claim is free for b without a's end.
		gb, err := b.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		st, _ := a.State()
		if st.Ended {
			t.Error("a was ended")
		}
		gb.Release(t.Context())
		a.leave(t)
		b.leave(t)
	})
}

func TestForeignRecordNeitherGrantsNorIsOverwritten(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := start(t, s, "a")
		if _, err := a.nc.Request("$KV.fab_test_production.c.e.x", []byte("garbage"), time.Second); err != nil {
			t.Fatal(err)
		}
		_, err := a.Claim("c.e.x").Acquire(t.Context(), 0)
		if f, ok := errors.AsType[*lease.ForeignError](err); !ok || f.Key != "c.e.x" {
			t.Errorf("Acquire over garbage = %v, want a *ForeignError", err)
		}
		if _, err := a.nc.Request("$KV.fab_test_production.c.p.b", []byte("{}"), time.Second); err != nil {
			t.Fatal(err)
		}
		_, err = tryStart(t, s, "b")
		if f, ok := errors.AsType[*lease.ForeignError](err); !ok || f.Key != "c.p.b" {
			t.Errorf("start over garbage = %v, want a *ForeignError", err)
		}
		a.leave(t)
	})
}

func TestVanishedBucketIsMadeAnewAndClosed(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := start(t, s, "a")
		g, err := a.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		g.ReleaseWhenLost()
		token := g.Token
		if _, err := a.nc.Request("$JS.API.STREAM.DELETE.KV_fab_test_production", nil, time.Second); err != nil {
			t.Fatal(err)
		}
		<-g.Context().Done()
		began := time.Now()
		g2, err := a.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if g2.Token <= token {
			t.Errorf("token %d in the new bucket, %d in the lost one: it must grow", g2.Token, token)
		}
		t.Logf("leading again %v after the loss was noticed", time.Since(began))
		a.leave(t)
	})
}

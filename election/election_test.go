package election_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// ttl is the lease of every node here.
const ttl = fabric.DefaultLease

// options dial over a link that can be cut.
func options(l *natstest.Link) []nats.Option {
	return append(natstest.FastOptions(), nats.InProcessServer(l))
}

func logger(t *testing.T, pid string) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", pid)
}

// within returns a context for a step that must not take longer.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func joinLink(t *testing.T, s *natstest.Server, pid string, tune ...func(*fabric.Config)) (*fabric.Node, *natstest.Link) {
	t.Helper()
	l := s.Link()
	cfg := fabric.Config{Cluster: "c", PID: fabric.PID(pid), NATS: options(l), Logger: logger(t, pid)}
	for _, f := range tune {
		f(&cfg)
	}
	n, err := fabric.Join(within(t, time.Minute), cfg)
	if err != nil {
		t.Fatalf("join as %s: %v", pid, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		if err := n.Leave(ctx); err != nil {
			t.Logf("leave %s: %v", pid, err) // a link that is still cut
		}
	})
	return n, l
}

func join(t *testing.T, s *natstest.Server, pid string, tune ...func(*fabric.Config)) *fabric.Node {
	t.Helper()
	n, _ := joinLink(t, s, pid, tune...)
	return n
}

func of(t *testing.T, n *fabric.Node, grace time.Duration) *election.Election {
	t.Helper()
	e, err := election.New(n, election.Config{Name: "x", Grace: grace, Logger: logger(t, string(n.PID()))})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func campaign(t *testing.T, e *election.Election) *election.Term {
	t.Helper()
	term, err := e.Campaign(within(t, 10*time.Minute))
	if err != nil {
		t.Fatalf("Campaign: %v", err)
	}
	return term
}

func resign(t *testing.T, term *election.Term) {
	t.Helper()
	if err := term.Resign(within(t, 10*time.Second)); err != nil {
		t.Errorf("Resign: %v", err)
	}
}

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

func TestConfigIsChecked(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		n := join(t, s, "a")
		for _, name := range []string{"", "a.b", "*", ">", "-a", "a b", "ä"} {
			_, err := election.New(n, election.Config{Name: name})
			if _, ok := errors.AsType[*election.NameError](err); !ok {
				t.Errorf("New(%q) = %v, want a *NameError", name, err)
			}
		}
		for _, grace := range []time.Duration{-1, ttl / 2, ttl} {
			_, err := election.New(n, election.Config{Name: "x", Grace: grace})
			if e, ok := errors.AsType[*election.ConfigError](err); !ok || e.Field != "Grace" || !errors.Is(err, election.ErrConfig) {
				t.Errorf("New with a grace of %v = %v, want a *ConfigError about Grace", grace, err)
			}
		}
		if _, err := election.New(n, election.Config{Name: "x", Grace: ttl/2 - 1}); err != nil {
			t.Errorf("New with a grace under half a lease = %v", err)
		}
	})
}

func TestCampaignWaitsAndHandsOver(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := of(t, join(t, s, "a"), 0), of(t, join(t, s, "b"), 0)
		began := time.Now()
		ta := campaign(t, a)
		if took := time.Since(began); took > 50*time.Millisecond || ta.Number() != 1 || !ta.Valid() {
			t.Errorf("term %d after %v, valid %t; want the first at once", ta.Number(), took, ta.Valid())
		}
		if _, err := b.Campaign(within(t, time.Minute)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Campaign beside a leader = %v, want ctx's cause", err)
		}
		mine := errors.New("mine")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(mine) })
		if _, err := b.Campaign(ctx); !errors.Is(err, mine) {
			t.Errorf("Campaign = %v, want its context's cause", err)
		}
		if !ta.Valid() {
			t.Fatal("the term ended by itself")
		}
		time.AfterFunc(time.Second, func() { began = time.Now(); resign(t, ta) })
		tb := campaign(t, b)
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Errorf("handed over in %v, want at once", took)
		}
		if tb.Number() != 2 || tb.Token() <= ta.Token() {
			t.Errorf("term %d, token %d after term %d, token %d", tb.Number(), tb.Token(), ta.Number(), ta.Token())
		}
		<-ta.Context().Done() // a moment after another may lead
		if cause := context.Cause(ta.Context()); cause != election.ErrResigned {
			t.Errorf("cause of the end = %v, want ErrResigned", cause)
		}
		resign(t, ta) // harmless after its end
		if !tb.Valid() {
			t.Error("resigning twice ended another's term")
		}
		resign(t, tb)
	})
}

// ctx bounds the wait, not the term.
func TestCampaignContextDoesNotEndTheTerm(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		e := of(t, join(t, s, "a"), 0)
		ctx, cancel := context.WithCancel(t.Context())
		term, err := e.Campaign(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		time.Sleep(time.Minute)
		if !term.Valid() || term.Context().Err() != nil {
			t.Errorf("the term ended with the context of Campaign: %v", context.Cause(term.Context()))
		}
		resign(t, term)
	})
}

func TestCampaignsOfOneNodeQueue(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		n := join(t, s, "a")
		first := campaign(t, of(t, n, 0))
		terms := make(chan *election.Term)
		for range 2 {
			e := of(t, n, 0) // also of another Election
			go func() {
				term, err := e.Campaign(within(t, time.Hour))
				if err != nil {
					t.Errorf("Campaign: %v", err)
				}
				terms <- term
			}()
		}
		time.Sleep(time.Minute)
		select {
		case <-terms:
			t.Fatal("two terms of one node at once")
		default:
		}
		resign(t, first)
		for want := uint64(2); want <= 3; want++ {
			term := <-terms
			if term.Number() != want || !term.Valid() {
				t.Errorf("term %d, valid %t, want %d", term.Number(), term.Valid(), want)
			}
			select {
			case <-terms:
				t.Fatal("two terms of one node at once")
			case <-time.After(10 * time.Second):
			}
			resign(t, term)
		}
	})
}

func TestOtherElectionsAreIndependent(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		n := join(t, s, "a")
		x := campaign(t, of(t, n, 0))
		e, err := election.New(n, election.Config{Name: "y"})
		if err != nil {
			t.Fatal(err)
		}
		y := campaign(t, e)
		if y.Number() != 1 || !x.Valid() {
			t.Errorf("term %d of y, x valid %t", y.Number(), x.Valid())
		}
		resign(t, x)
		if !y.Valid() {
			t.Error("resigning x ended y")
		}
		resign(t, y)
	})
}

// The context ends Grace before the claim can be another's, and Valid agrees.
func TestGraceOfACutLeader(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		const grace = 2 * time.Second
		a, la := joinLink(t, s, "a")
		b := of(t, join(t, s, "b"), 0)
		ta := campaign(t, of(t, a, grace))
		ended := make(chan time.Time, 1)
		context.AfterFunc(ta.Context(), func() {
			if ta.Valid() {
				t.Error("valid after its context has ended")
			}
			ended <- time.Now()
		})
		la.Cut()
		tb := campaign(t, b)
		select {
		case at := <-ended:
			if early := time.Since(at); early < grace {
				t.Errorf("the context ended %v before the next term, want %v at least", early, grace)
			}
		default:
			t.Error("the context lives when another leads")
		}
		if cause := context.Cause(ta.Context()); !errors.Is(cause, election.ErrLost) {
			t.Errorf("cause = %v, want ErrLost", cause)
		}
		la.Heal()
		time.Sleep(time.Minute)
		if !tb.Valid() {
			t.Error("the return of the old leader ended the term")
		}
		resign(t, tb)
	})
}

// A term that was lost without anyone having taken the lease is given back by
// itself: a process that goes on must not hold what nobody acts on.
func TestLostTermIsGivenBack(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		const grace = 2 * time.Second
		a, la := joinLink(t, s, "a")
		inc := a.Incarnation()
		ta := campaign(t, of(t, a, grace))
		b := of(t, join(t, s, "b"), 0)
		la.Cut()
		<-ta.Context().Done()
		la.Heal() // within the grace: the lease goes on
		tb := campaign(t, b)
		if a.Incarnation() != inc {
			t.Fatal("the node lost its lease: the test shows nothing")
		}
		if tb.Number() != 2 {
			t.Errorf("term %d, want 2", tb.Number())
		}
		resign(t, tb)
	})
}

func TestLeader(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		watcher := of(t, join(t, s, "w", func(c *fabric.Config) { c.Passive = true }), 0)
		if _, err := watcher.Leader(t.Context()); !errors.Is(err, election.ErrNoLeader) {
			t.Errorf("Leader before the first = %v, want ErrNoLeader", err)
		}
		before := time.Now()
		term := campaign(t, of(t, a, 0))
		want := election.Leader{PID: "a", Incarnation: a.Incarnation(), Term: 1, Token: term.Token()}
		got, err := watcher.Leader(t.Context())
		if since := got.Since; since.Before(before.Add(-time.Second)) || since.After(time.Now()) {
			t.Errorf("Since = %v", since)
		}
		got.Since = time.Time{}
		if err != nil || got != want {
			t.Errorf("Leader = %+v, %v, want %+v", got, err, want)
		}
		crash(a, la)
		if got, err := watcher.Leader(t.Context()); err != nil || got.PID != "a" {
			t.Errorf("Leader right after the crash = %+v, %v, want a until its lease has run out", got, err)
		}
		b := join(t, s, "b") // somebody has to find out
		time.Sleep(3 * ttl)
		if _, err := watcher.Leader(t.Context()); !errors.Is(err, election.ErrNoLeader) {
			t.Errorf("Leader after the lease = %v, want ErrNoLeader", err)
		}
		term = campaign(t, of(t, b, 0))
		leave(t, b)
		if _, err := watcher.Leader(t.Context()); !errors.Is(err, election.ErrNoLeader) {
			t.Errorf("Leader after the leader left = %v, want ErrNoLeader", err)
		}
		if cause := context.Cause(term.Context()); cause != election.ErrResigned {
			t.Errorf("cause after Leave = %v, want ErrResigned", cause)
		}
	})
}

func TestLeadersReportsVacancyAndTheFinalState(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		b := join(t, s, "b")
		c := join(t, s, "c")
		seen := make(chan election.Leader, 100)
		done := make(chan error, 1)
		go func() {
			for l, err := range of(t, c, 0).Leaders(t.Context()) {
				if err != nil {
					done <- err
					return
				}
				seen <- l
			}
		}()
		expect := func(what string, pid fabric.PID, term uint64, limit time.Duration) {
			t.Helper()
			select {
			case l := <-seen:
				if l.PID != pid || l.Term != term {
					t.Errorf("%s: reported %q, term %d, want %q, term %d", what, l.PID, l.Term, pid, term)
				}
			case <-time.After(limit):
				t.Errorf("%s: nothing reported in %v, want %q, term %d", what, limit, pid, term)
			}
		}
		expect("first", "", 0, time.Second)
		ta := campaign(t, of(t, a, 0))
		expect("elected", "a", 1, 100*time.Millisecond)
		resign(t, ta)
		expect("resigned", "", 0, 100*time.Millisecond)
		campaign(t, of(t, a, 0))
		expect("elected again", "a", 2, 100*time.Millisecond)
		crash(a, la)
		expect("crashed, and suspected", "a", 2, ttl)
		expect("crashed, found by the members' coordinator", "", 0, 3*ttl)
		campaign(t, of(t, b, 0))
		expect("another", "b", 3, 100*time.Millisecond)
		leave(t, b)
		expect("left", "", 0, 100*time.Millisecond)
		leave(t, c)
		if err := <-done; !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("Leaders ends with %v after Leave, want ErrClosed", err)
		}
		if len(seen) > 0 {
			t.Errorf("reported further: %v", <-seen)
		}
	})
}

// A slow reader misses leaders between, never the last.
func TestLeadersOfASlowReader(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		e := of(t, join(t, s, "a"), 0)
		last := election.Leader{}
		n := 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go func() {
			for range 50 {
				resign(t, campaign(t, e))
			}
			campaign(t, e)
		}()
		for l, err := range e.Leaders(ctx) {
			if err != nil {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Leaders ends with %v, want ctx's cause", err)
				}
				break
			}
			last = l
			n++
			time.Sleep(3 * time.Second)
		}
		if last.Term != 51 {
			t.Errorf("the last leader reported is of term %d, want 51", last.Term)
		}
		if n > 20 {
			t.Errorf("%d reports to a reader that takes 3 s for each", n)
		}
	})
}

func TestLeadersEndsWhenTheLoopIsLeft(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		for range of(t, join(t, s, "a"), 0).Leaders(t.Context()) {
			break // the bubble finds what is left behind
		}
	})
}

func TestPassiveNodeOnlyWatches(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		e := of(t, join(t, s, "w", func(c *fabric.Config) { c.Passive = true }), 0)
		if _, err := e.Campaign(within(t, time.Minute)); !errors.Is(err, fabric.ErrPassive) {
			t.Errorf("Campaign = %v, want ErrPassive", err)
		}
		err := e.Lead(within(t, time.Minute), func(context.Context, *election.Term) error { t.Error("leads"); return nil })
		if !errors.Is(err, fabric.ErrPassive) {
			t.Errorf("Lead = %v, want ErrPassive", err)
		}
		if _, err := e.Leader(t.Context()); !errors.Is(err, election.ErrNoLeader) { // nor is there a bucket
			t.Errorf("Leader = %v, want ErrNoLeader", err)
		}
	})
}

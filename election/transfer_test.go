package election_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// ranked returns an election with a priority.
func ranked(t *testing.T, n *fabric.Node, priority int, preempt bool) *election.Election {
	t.Helper()
	e, err := election.New(n, election.Config{Name: "x", Priority: priority, Preempt: preempt, Logger: logger(t, string(n.PID()))})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// standing joins nodes that campaign, in the order given, and returns the
// channels on which their terms come, by PID.
func standing(t *testing.T, s *natstest.Server, pids ...string) map[fabric.PID]<-chan *election.Term {
	terms := map[fabric.PID]<-chan *election.Term{}
	for _, pid := range pids {
		terms[fabric.PID(pid)] = inBackground(t, of(t, join(t, s, pid), 0))
	}
	time.Sleep(time.Second)
	return terms
}

func TestTransferToANamedCandidate(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		term := campaign(t, of(t, join(t, s, "a"), 0))
		terms := standing(t, s, "b", "c", "d", "e")
		for i, to := range []fabric.PID{"d", "b", "e"} {
			began := time.Now()
			l, err := term.Transfer(within(t, time.Minute), to)
			if err != nil {
				t.Fatalf("Transfer to %s = %v", to, err)
			}
			if took := time.Since(began); took > 10*time.Millisecond {
				t.Errorf("handed over in %v, want at once", took)
			}
			next := <-terms[to]
			if l.PID != to || l.Token != next.Token() || next.Number() != uint64(i+2) || next.Token() <= term.Token() {
				t.Errorf("Transfer = %+v, term %d token %d; want %s, term %d", l, next.Number(), next.Token(), to, i+2)
			}
			if cause := context.Cause(term.Context()); cause != election.ErrHandOver || term.Valid() {
				t.Errorf("valid %t, cause %v; want ErrHandOver", term.Valid(), cause)
			}
			if _, err := term.Transfer(within(t, time.Minute), "c"); !errors.Is(err, election.ErrHandOver) && !errors.Is(err, election.ErrNoCandidate) {
				t.Errorf("Transfer of a term that has ended = %v", err)
			}
			term = next
		}
		resign(t, term)
		resign(t, <-terms["c"])
	})
}

func TestTransferToNobody(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		term := campaign(t, of(t, join(t, s, "a"), 0))
		join(t, s, "b") // a member that does not stand
		for _, to := range []fabric.PID{"b", "nobody", "a", ""} {
			if _, err := term.Transfer(within(t, time.Minute), to); !errors.Is(err, election.ErrNoCandidate) {
				t.Errorf("Transfer to %q = %v, want ErrNoCandidate", to, err)
			}
			if !term.Valid() {
				t.Fatalf("the term ended for %q", to)
			}
		}
		resign(t, term)
	})
}

// Who stands but cannot come leaves the claim to others after a second.
func TestTransferThatIsNotTaken(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		term := campaign(t, of(t, join(t, s, "a"), 0))
		b, lb := joinLink(t, s, "b")
		inBackground(t, of(t, b, 0))
		terms := standing(t, s, "c")
		lb.Cut()
		began := time.Now()
		l, err := term.Transfer(within(t, time.Minute), "b")
		if !errors.Is(err, election.ErrNotTaken) || l.PID != "c" {
			t.Errorf("Transfer to one that is cut off = %+v, %v; want c to lead, and ErrNotTaken", l, err)
		}
		if took := time.Since(began); took < 900*time.Millisecond || took > 1500*time.Millisecond {
			t.Errorf("c leads after %v, want after the second that b has", took)
		}
		resign(t, <-terms["c"])
		lb.Heal()
		time.Sleep(time.Second)
	})
}

// The same if another node asked for it, and who leads then is late, too.
func TestAskTransferThatIsNotTaken(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		passive := of(t, join(t, s, "w", func(c *fabric.Config) { c.Passive = true }), 0)
		term := campaign(t, of(t, join(t, s, "a"), 0))
		b, lb := joinLink(t, s, "b")
		inBackground(t, of(t, b, 0))
		c, lc := joinLink(t, s, "c")
		next := inBackground(t, of(t, c, 0))
		time.Sleep(time.Second)
		var began time.Time
		context.AfterFunc(term.Context(), func() {
			lb.Cut()
			lc.Cut()
			time.AfterFunc(500*time.Millisecond, lc.Heal)
			began = time.Now()
			resign(t, term)
		})
		l, err := passive.AskTransfer(within(t, time.Minute), "b")
		if !errors.Is(err, election.ErrNotTaken) || l.PID != "c" || l.Term != 2 {
			t.Errorf("AskTransfer to one that is cut off = %+v, %v; want c to lead, and ErrNotTaken", l, err)
		}
		if took := time.Since(began); took < 1400*time.Millisecond || took > 2*time.Second {
			t.Errorf("c leads after %v, want a second after it heard of it", took)
		}
		resign(t, <-next)
		lb.Heal()
		time.Sleep(time.Second)
	})
}

// Nobody leads, and whom the leader handed over to does not come: that is said soon.
func TestAskTransferThatNobodyTakes(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		passive := of(t, join(t, s, "w", func(c *fabric.Config) { c.Passive = true }), 0)
		term := campaign(t, of(t, join(t, s, "a"), 0))
		b, lb := joinLink(t, s, "b")
		inBackground(t, of(t, b, 0))
		time.Sleep(time.Second)
		context.AfterFunc(term.Context(), func() {
			lb.Cut()
			resign(t, term)
		})
		began := time.Now()
		_, err := passive.AskTransfer(within(t, time.Minute), "b")
		if took := time.Since(began); !errors.Is(err, election.ErrNoLeader) || took > 5*time.Second {
			t.Errorf("AskTransfer = %v after %v, want ErrNoLeader after a few seconds", err, took)
		}
		lb.Heal()
		time.Sleep(time.Second)
	})
}

// The highest priority comes first, then who is longest in the fabric: when the
// leader resigns, hands over to nobody in particular, or crashes.
func TestPriorities(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		ea := of(t, a, 0)
		term := campaign(t, ea)
		terms := map[fabric.PID]<-chan *election.Term{}
		add := func(pid string, priority int) {
			terms[fabric.PID(pid)] = inBackground(t, ranked(t, join(t, s, pid), priority, false))
		}
		for i, pid := range []string{"low", "first", "second", "high", "top"} {
			add(pid, []int{-1, 1, 1, 2, 3}[i])
		}
		time.Sleep(time.Second)
		if !term.Valid() {
			t.Fatal("a higher priority ended the term")
		}
		wins := func(what string, pid fabric.PID) *election.Term {
			t.Helper()
			select {
			case next := <-terms[pid]:
				time.Sleep(time.Second) // until everyone has told the new leader that it stands
				return next
			case <-time.After(3 * ttl):
				t.Fatalf("%s: %s does not lead", what, pid)
				return nil
			}
		}
		resign(t, term)
		term = wins("resigned", "top")
		time.Sleep(time.Second)
		if l, err := term.Transfer(within(t, time.Second), ""); err != nil || l.PID != "high" || l.Priority != 2 {
			t.Errorf("Transfer to the first = %+v, %v; want high", l, err)
		}
		term = wins("transferred", "high")
		// The leader crashes.
		resign(t, term)
		wins("resigned", "first").Resign(within(t, time.Second))
		wins("resigned", "second").Resign(within(t, time.Second))
		wins("resigned", "low").Resign(within(t, time.Second))
		campaign(t, ea)
		add("two", 2)
		add("five", 5)
		time.Sleep(time.Second)
		crash(a, la)
		resign(t, wins("crashed", "five"))
		resign(t, wins("resigned", "two"))
	})
}

// A candidate of a higher priority that asks for it is handed over to, after the
// leader's work has stopped; one that does not ask waits.
func TestPreemptionAsksTheLeader(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		ea := ranked(t, a, 1, false)
		var working atomic.Int32
		led := make(chan *election.Term, 10)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- ea.Lead(ctx, func(ctx context.Context, term *election.Term) error {
				working.Add(1)
				defer working.Add(-1)
				led <- term
				<-ctx.Done()
				if cause := context.Cause(ctx); term.Number() == 1 && cause != election.ErrHandOver {
					t.Errorf("cause = %v, want ErrHandOver", cause)
				}
				if term.Number() == 1 && term.Valid() {
					t.Error("valid after it was asked to hand over")
				}
				time.Sleep(300 * time.Millisecond)
				return errors.New("discarded")
			})
		}()
		<-led
		same := inBackground(t, ranked(t, join(t, s, "same"), 1, true))
		patient := inBackground(t, ranked(t, join(t, s, "patient"), 9, false))
		time.Sleep(10 * time.Second)
		if len(same)+len(patient) > 0 {
			t.Fatal("another leads, whom nobody handed over to")
		}
		began := time.Now()
		high := campaign(t, ranked(t, join(t, s, "high"), 2, true))
		if working.Load() != 0 {
			t.Error("two work at once")
		}
		if took := time.Since(began); took < 300*time.Millisecond || took > 400*time.Millisecond {
			t.Errorf("pre-empted in %v, want when the work had stopped", took)
		}
		time.Sleep(time.Second)
		resign(t, high)
		p := <-patient
		time.Sleep(time.Second)
		resign(t, p)
		<-led // a campaigned again, and is longer in the fabric than the other of its priority
		stop()
		resign(t, <-same)
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Lead = %v, want its context's cause", err)
		}
	})
}

func TestAskTransfer(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		passive := of(t, join(t, s, "w", func(c *fabric.Config) { c.Passive = true }), 0)
		if _, err := passive.AskTransfer(within(t, time.Second), "b"); !errors.Is(err, election.ErrNoLeader) {
			t.Errorf("AskTransfer without a leader = %v, want ErrNoLeader", err)
		}
		a := of(t, join(t, s, "a"), 0)
		term := campaign(t, a)
		if _, err := passive.AskTransfer(within(t, time.Minute), "b"); !errors.Is(err, election.ErrNoCandidate) || !term.Valid() {
			t.Errorf("AskTransfer to nobody = %v, valid %t; want ErrNoCandidate", err, term.Valid())
		}
		if l, err := passive.AskTransfer(within(t, time.Minute), "a"); err != nil || l.PID != "a" || !term.Valid() {
			t.Errorf("AskTransfer to the leader = %+v, %v; want nothing to happen", l, err)
		}
		terms := standing(t, s, "b", "c")
		// The leader obeys when its work has stopped.
		context.AfterFunc(term.Context(), func() {
			time.Sleep(2 * time.Second)
			if l, err := passive.Leader(t.Context()); err != nil || l.PID != "a" {
				t.Errorf("%+v, %v leads before the work has stopped", l, err)
			}
			resign(t, term)
		})
		l, err := passive.AskTransfer(within(t, time.Minute), "c")
		if err != nil || l.PID != "c" || l.Term != 2 {
			t.Errorf("AskTransfer = %+v, %v; want c, term 2", l, err)
		}
		// A leader may be asked by its own node.
		tc := <-terms["c"]
		context.AfterFunc(tc.Context(), func() { resign(t, tc) })
		if l, err := a.AskTransfer(within(t, time.Minute), ""); err != nil || l.PID != "b" {
			t.Errorf("AskTransfer to the first = %+v, %v; want b", l, err)
		}
		tb := <-terms["b"]
		resigned := make(chan struct{})
		context.AfterFunc(tb.Context(), func() { resign(t, tb); close(resigned) })
		if _, err := passive.AskTransfer(within(t, time.Minute), ""); !errors.Is(err, election.ErrNoCandidate) {
			t.Errorf("AskTransfer to the first of nobody = %v, want ErrNoCandidate", err)
		}
		if l, err := passive.AskResign(within(t, time.Minute)); err != nil || l.PID != "b" {
			t.Errorf("AskResign = %+v, %v; want b's term to end", l, err)
		}
		<-resigned
		if _, err := passive.AskResign(within(t, time.Second)); !errors.Is(err, election.ErrNoLeader) {
			t.Errorf("AskResign without a leader = %v, want ErrNoLeader", err)
		}
	})
}

// In Lead, who was asked to resign stands back for a second.
func TestAskResignOfLead(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := of(t, join(t, s, "a"), 0)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		led := make(chan uint64, 10)
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.Lead(ctx, func(ctx context.Context, term *election.Term) error {
				led <- term.Number()
				<-ctx.Done()
				return nil
			})
		}()
		<-led
		if _, err := a.AskResign(within(t, time.Second)); err != nil { // of its own node
			t.Fatal(err)
		}
		began := time.Now()
		if n := <-led; n != 2 || time.Since(began) < 900*time.Millisecond {
			t.Errorf("leads again in term %d after %v, want term 2 after a second", n, time.Since(began))
		}
		tb := inBackground(t, of(t, join(t, s, "b"), 0))
		time.Sleep(time.Second)
		if _, err := a.AskResign(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		resign(t, <-tb)
		if n := <-led; n != 4 {
			t.Errorf("leads again in term %d, want 4", n)
		}
		stop()
		<-done
	})
}

// Of many candidates a few write when the claim is free, whether the leader resigned,
// crashed, or there has not been one.
func TestManyCandidatesAreNoHerd(t *testing.T) {
	const n = 100
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		var writes atomic.Int64
		if _, err := s.Connect().Subscribe("$KV.fab_c_production.c.e.x", func(*nats.Msg) { writes.Add(1) }); err != nil {
			t.Fatal(err)
		}
		type won struct {
			term *election.Term
			node *fabric.Node
			link *natstest.Link
		}
		wins := make(chan won, n)
		for i := range n {
			node, link := joinLink(t, s, fmt.Sprint("p", i), func(c *fabric.Config) { c.Logger = nil })
			e, err := election.New(node, election.Config{Name: "x"})
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				time.Sleep(20*time.Second - time.Duration(time.Now().UnixNano())%time.Second) // all at once
				term, err := e.Campaign(within(t, time.Hour))
				if err == nil {
					wins <- won{term, node, link}
				}
			}()
		}
		w := <-wins
		time.Sleep(5 * time.Second)
		t.Logf("%d writes for the first term of %d candidates", writes.Load(), n)
		if got := writes.Load(); got > n/3 {
			t.Errorf("%d writes for the first term, want a third of %d at most", got, n)
		}
		for i := range 6 {
			writes.Store(0)
			began := time.Now()
			if i%2 == 0 {
				resign(t, w.term)
			} else {
				crash(w.node, w.link)
			}
			next := <-wins
			took := time.Since(began)
			time.Sleep(5 * time.Second)
			t.Logf("%d writes, led after %v", writes.Load(), took)
			if got := writes.Load(); got > 10 {
				t.Errorf("hand-over %d took %d writes, want a few of %d candidates", i, got, n)
			}
			if limit := 50 * time.Millisecond; i%2 == 0 && took > limit {
				t.Errorf("hand-over %d took %v, want %v", i, took, limit)
			}
			if limit := ttl + ttl/50 + time.Second; took > limit {
				t.Errorf("the next leads %v after the crash, want %v", took, limit)
			}
			w = next
		}
	})
}

// The leader that has handed over knows nothing of the next before that has the claim:
// to who asks again then it is no refusal.
func TestAskTransferToASlowCandidate(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		passive := of(t, join(t, s, "w", func(c *fabric.Config) { c.Passive = true }), 0)
		term := campaign(t, of(t, join(t, s, "a"), 0))
		c, link := joinLink(t, s, "c")
		inBackground(t, of(t, c, 0))
		time.Sleep(time.Second)
		context.AfterFunc(term.Context(), func() {
			time.Sleep(2 * time.Second)
			link.Cut()
			time.AfterFunc(700*time.Millisecond, link.Heal)
			resign(t, term)
		})
		if l, err := passive.AskTransfer(within(t, time.Minute), "c"); err != nil || l.PID != "c" || l.Term != 2 {
			t.Errorf("AskTransfer = %+v, %v; want c, term 2", l, err)
		}
	})
}

// Who has no permission to reach the candidates is told so, and waits for nothing.
func TestAskTransferNeedsACandidate(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		term := campaign(t, of(t, join(t, s, "a"), 0))
		for _, role := range []fabric.Role{fabric.RoleObserver, fabric.RoleMember} {
			e := of(t, join(t, s, role.String(), func(c *fabric.Config) { c.Role = role }), 0)
			if _, err := e.AskTransfer(within(t, time.Second), "b"); !errors.Is(err, fabric.ErrNotCandidate) {
				t.Errorf("AskTransfer of an %v = %v, want ErrNotCandidate", role, err)
			}
			if _, err := e.AskResign(within(t, time.Second)); !errors.Is(err, fabric.ErrNotCandidate) {
				t.Errorf("AskResign of an %v = %v, want ErrNotCandidate", role, err)
			}
		}
		if !term.Valid() {
			t.Error("the term ended")
		}
		resign(t, term)
	})
}

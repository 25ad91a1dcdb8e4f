package election_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// holding returns an election whose terms outlast a suspension.
func holding(t *testing.T, n *fabric.Node) *election.Election {
	t.Helper()
	e, err := election.New(n, election.Config{Name: "x", HoldOnSuspend: true, Logger: logger(t, string(n.PID()))})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func wantState(t *testing.T, e *election.Election, want election.State) {
	t.Helper()
	if got := e.State(); got != want {
		t.Errorf("State = %v, want %v", got, want)
	}
}

// inBackground campaigns, and delivers the term.
func inBackground(t *testing.T, e *election.Election) <-chan *election.Term {
	terms := make(chan *election.Term, 1)
	go func() {
		term, err := e.Campaign(within(t, time.Hour))
		if err != nil && t.Context().Err() == nil {
			t.Errorf("Campaign: %v", err)
		}
		terms <- term
	}()
	return terms
}

func TestStates(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		ea, eb := of(t, a, 0), of(t, join(t, s, "b"), 0)
		wantState(t, ea, election.Observer)
		ta := campaign(t, ea)
		wantState(t, ea, election.Leading)
		wantState(t, of(t, a, 0), election.Leading) // the node's, not the value's
		next := inBackground(t, eb)
		time.Sleep(time.Second)
		wantState(t, eb, election.Follower)
		resign(t, ta)
		tb := <-next
		wantState(t, ea, election.Observer)
		wantState(t, eb, election.Leading)
		resign(t, tb)
		wantState(t, eb, election.Observer)
		s.Stop()
		synctest.Wait()
		next = inBackground(t, ea)
		time.Sleep(time.Second)
		wantState(t, ea, election.Candidate)
		s.Start()
		synctest.Wait()
		resign(t, <-next)
		leave(t, a)
		wantState(t, ea, election.Closed)
		for st, want := range map[election.State]string{election.Observer: "observer", election.Leading: "leader", election.Closed: "closed"} {
			if st.String() != want {
				t.Errorf("String() = %q, want %q", st, want)
			}
		}
	})
}

func TestTryDoesNotWait(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := of(t, join(t, s, "a"), 0), of(t, join(t, s, "b"), 0)
		ta, err := a.Try(within(t, time.Second))
		if err != nil {
			t.Fatalf("Try of a free election = %v", err)
		}
		if _, err := b.Try(within(t, time.Second)); !errors.Is(err, election.ErrTaken) {
			t.Errorf("Try beside a leader = %v, want ErrTaken", err)
		}
		resign(t, ta)
		tb, err := b.Try(within(t, time.Second))
		if err != nil {
			t.Fatalf("Try after the leader resigned = %v", err)
		}
		resign(t, tb)
	})
}

// The bucket takes no writes for three leases: a term that holds on is suspended,
// and is the same term when they pass again, with a candidate waiting.
func TestHoldOnSuspendResumes(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		ea, eb := holding(t, join(t, s, "a")), of(t, join(t, s, "b"), 0)
		ta := campaign(t, ea)
		next := inBackground(t, eb)
		time.Sleep(time.Second)
		for range 3 {
			s.Stop()
			synctest.Wait()
			time.Sleep(3 * ttl)
			if ta.Valid() {
				t.Error("a term is valid while its lease has run out")
			}
			if ta.Context().Err() != nil {
				t.Fatalf("the term's context ended: %v", context.Cause(ta.Context()))
			}
			wantState(t, ea, election.Suspended)
			s.Start()
			synctest.Wait()
			if err := ta.Confirm(within(t, time.Minute)); err != nil {
				t.Fatalf("Confirm after the outage = %v", err)
			}
			if !ta.Valid() || ta.Number() != 1 {
				t.Errorf("term %d, valid %t after the outage, want the first to go on", ta.Number(), ta.Valid())
			}
			wantState(t, ea, election.Leading)
			time.Sleep(time.Minute)
			if !ta.Valid() {
				t.Error("the resumed term ended")
			}
		}
		if len(next) > 0 {
			t.Error("another led meanwhile")
		}
		resign(t, ta)
		if tb := <-next; tb.Number() != 2 {
			t.Errorf("term %d, want 2", tb.Number())
		} else {
			resign(t, tb)
		}
	})
}

// Work that returns while its term is suspended is done: Lead returns what it does, and
// does not run it again.
func TestLeadReturnsWhileSuspended(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		e := holding(t, join(t, s, "a"))
		done := errors.New("done")
		calls := 0
		err := e.Lead(within(t, 20*ttl), func(ctx context.Context, term *election.Term) error {
			if calls++; calls > 1 {
				return errors.New("once more")
			}
			s.Stop()
			time.Sleep(2 * ttl)
			if term.Valid() || ctx.Err() != nil {
				t.Errorf("valid %t, context %v, want a suspended term", term.Valid(), ctx.Err())
			}
			time.AfterFunc(ttl/2, s.Start)
			return done
		})
		if err != done || calls != 1 {
			t.Errorf("Lead = %v after %d calls, want %v after one", err, calls, done)
		}
	})
}

// A suspended term is handed over when it goes on.
func TestTransferWhileSuspended(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		ea, eb := holding(t, join(t, s, "a")), of(t, join(t, s, "b"), 0)
		term := campaign(t, ea)
		next := inBackground(t, eb)
		time.Sleep(time.Second)
		s.Stop()
		synctest.Wait()
		time.Sleep(2 * ttl)
		if _, err := term.Transfer(within(t, time.Second), "b"); !errors.Is(err, context.DeadlineExceeded) || term.Context().Err() != nil {
			t.Errorf("Transfer while suspended = %v, and the term's context %v; want the deadline's, and a term that lives", err, term.Context().Err())
		}
		time.AfterFunc(time.Second, s.Start)
		if l, err := term.Transfer(within(t, time.Minute), "b"); err != nil || l.PID != "b" {
			t.Errorf("Transfer while suspended, and resumed = %+v, %v, want b", l, err)
		}
		resign(t, <-next)
	})
}

// A term that holds on while its leader is cut off is over when another leads.
func TestHoldOnSuspendIsLostToAnother(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		ea, eb := holding(t, a), of(t, join(t, s, "b"), 0)
		ta := campaign(t, ea)
		la.Cut()
		tb := campaign(t, eb)
		if ta.Valid() {
			t.Error("two valid terms")
		}
		wantState(t, ea, election.Suspended) // it cannot know
		la.Heal()
		<-ta.Context().Done()
		if cause := context.Cause(ta.Context()); !errors.Is(cause, election.ErrLost) {
			t.Errorf("cause = %v, want ErrLost", cause)
		}
		if err := ta.Confirm(within(t, time.Minute)); !errors.Is(err, election.ErrLost) {
			t.Errorf("Confirm of a lost term = %v, want ErrLost", err)
		}
		wantState(t, ea, election.Observer)
		if !tb.Valid() {
			t.Error("the return of the old leader ended the term")
		}
		// The old leader's claim is settled: it can campaign again.
		next := inBackground(t, ea)
		time.Sleep(ttl)
		resign(t, tb)
		resign(t, <-next)
	})
}

func TestLeaveEndsASuspendedTerm(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		ta := campaign(t, holding(t, a))
		la.Cut()
		time.Sleep(2 * ttl)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		a.Leave(ctx) // fails: the link is cut
		<-ta.Context().Done()
		if cause := context.Cause(ta.Context()); !errors.Is(cause, election.ErrResigned) {
			t.Errorf("cause = %v, want ErrResigned", cause)
		}
	})
}

func TestConfirm(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		ta := campaign(t, of(t, a, 0))
		for range 5 {
			began := time.Now()
			if err := ta.Confirm(within(t, time.Second)); err != nil {
				t.Errorf("Confirm = %v", err)
			}
			if took := time.Since(began); took > 10*time.Millisecond {
				t.Errorf("Confirm took %v, want a round trip", took)
			}
		}
		la.CutReplies() // the write lands, and nobody knows
		if err := ta.Confirm(within(t, time.Second)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Confirm without an answer = %v, want its context's cause", err)
		}
		if err := ta.Confirm(within(t, time.Hour)); !errors.Is(err, election.ErrLost) {
			t.Errorf("Confirm until the lease ran out = %v, want ErrLost", err)
		}
		la.Heal()
		tb := campaign(t, of(t, a, 0))
		resign(t, tb)
		if err := tb.Confirm(within(t, time.Second)); !errors.Is(err, election.ErrResigned) {
			t.Errorf("Confirm after Resign = %v, want ErrResigned", err)
		}
	})
}

// An observer hears that the leader is silent before anyone may lead, and that it is
// back; one that is itself cut off ends with the last leader all the same.
func TestLeadersReportsSuspicion(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		b, c := join(t, s, "b"), join(t, s, "c", func(c *fabric.Config) { c.Passive = true })
		seen := make(chan election.Leader, 100)
		go func() {
			for l, err := range of(t, c, 0).Leaders(t.Context()) {
				if err == nil {
					seen <- l
				}
			}
		}()
		next := func(what string, limit time.Duration) election.Leader {
			t.Helper()
			select {
			case l := <-seen:
				return l
			case <-time.After(limit):
				t.Fatalf("%s: nothing reported in %v", what, limit)
				return election.Leader{}
			}
		}
		next("at first", time.Second)
		ta := campaign(t, of(t, a, 0))
		if l := next("elected", time.Second); l.PID != "a" || l.Suspected {
			t.Errorf("reported %+v, want a to lead", l)
		}
		time.Sleep(time.Minute)
		for range 2 {
			la.Cut()
			if l := next("cut", ttl); l.PID != "a" || !l.Suspected || l.Term != 1 {
				t.Errorf("reported %+v, want a to be suspected", l)
			}
			if !ta.Valid() {
				t.Error("suspected after its lease ran out only")
			}
			la.Heal()
			if l := next("healed", ttl); l.PID != "a" || l.Suspected || l.Term != 1 {
				t.Errorf("reported %+v, want a to lead as before", l)
			}
			time.Sleep(time.Minute)
		}
		if len(seen) > 0 {
			t.Errorf("reported %+v while nothing happened", <-seen)
		}
		la.Cut()
		tb := campaign(t, of(t, b, 0))
		last := election.Leader{}
		for last.PID != "b" {
			l := next("another", time.Second)
			if l.Term != 0 && l.Term < last.Term {
				t.Errorf("term %d after %d", l.Term, last.Term)
			}
			last = l
		}
		if last.Term != 2 || last.Token != tb.Token() || last.Suspected {
			t.Errorf("the last report is %+v, want b, term 2", last)
		}
		resign(t, tb)
	})
}

func TestList(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		w := join(t, s, "w", func(c *fabric.Config) { c.Passive = true })
		if got, err := election.List(t.Context(), w); len(got) != 0 || err != nil {
			t.Errorf("List without a bucket = %+v, %v", got, err)
		}
		a, la := joinLink(t, s, "a")
		b := join(t, s, "b")
		terms := map[string]*election.Term{}
		for name, n := range map[string]*fabric.Node{"mail": b, "jobs": a, "idle": b} {
			e, err := election.New(n, election.Config{Name: name, Priority: 3})
			if err != nil {
				t.Fatal(err)
			}
			terms[name] = campaign(t, e)
		}
		resign(t, terms["idle"])
		if _, err := s.Connect().Request("$KV.fab_c_production.c.e.bad", []byte("garbage"), time.Second); err != nil {
			t.Fatal(err)
		}
		crash(a, la)
		want := []election.Listed{
			{Name: "bad", Foreign: true}, {Name: "idle", Term: 1}, {Name: "jobs", Term: 1},
			{Name: "mail", Term: 1, Leader: election.Leader{PID: "b", Incarnation: b.Incarnation(), Term: 1, Token: terms["mail"].Token(), Priority: 3}},
		}
		time.Sleep(3 * ttl)
		got, err := election.List(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			got[i].Leader.Since = time.Time{}
		}
		if !slices.Equal(got, want) {
			t.Errorf("List = %+v, want %+v", got, want)
		}
		resign(t, terms["mail"])
	})
}

package election_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

func TestLeadReturnsWhatTheFunctionDoes(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		e := of(t, join(t, s, "a"), 0)
		mine := errors.New("mine")
		for _, want := range []error{nil, mine} {
			ctx, cancel := context.WithCancel(t.Context())
			got := e.Lead(ctx, func(ctx context.Context, term *election.Term) error {
				time.Sleep(time.Minute)
				if !term.Valid() || ctx.Err() != nil {
					t.Error("the term does not last")
				}
				return want
			})
			if got != want {
				t.Errorf("Lead = %v, want the function's %v", got, want)
			}
			cancel()
			if _, err := e.Leader(t.Context()); !errors.Is(err, election.ErrNoLeader) {
				t.Errorf("Leader after Lead = %v, want ErrNoLeader: it resigns", err)
			}
		}
	})
}

func TestLeadEndsWithItsContext(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		e := of(t, join(t, s, "a"), 0)
		mine := errors.New("mine")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(mine) })
		stopped := time.Time{}
		err := e.Lead(ctx, func(ctx context.Context, term *election.Term) error {
			<-ctx.Done()
			if cause := context.Cause(ctx); cause != mine {
				t.Errorf("the function's context ends with %v, want Lead's cause", cause)
			}
			time.Sleep(3 * time.Second) // work that takes its time to stop
			if !term.Valid() {
				t.Error("the claim was given back before the function returned")
			}
			stopped = time.Now()
			return errors.New("discarded")
		})
		if !errors.Is(err, mine) || time.Since(stopped) > 100*time.Millisecond {
			t.Errorf("Lead = %v %v after the function returned, want its context's cause at once", err, time.Since(stopped))
		}
		if _, err := e.Leader(t.Context()); !errors.Is(err, election.ErrNoLeader) {
			t.Errorf("Leader after Lead = %v, want ErrNoLeader", err)
		}
		if err := e.Lead(ctx, func(context.Context, *election.Term) error { t.Error("called"); return nil }); !errors.Is(err, mine) {
			t.Errorf("Lead with a context that has ended = %v, want its cause", err)
		}
	})
}

// After a loss Lead waits for the function, however long it takes, discards its
// error, and campaigns again.
func TestLeadCampaignsAgainAfterALoss(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		b := of(t, join(t, s, "b"), 0)
		running := atomic.Int32{}
		calls := make(chan *election.Term, 10)
		result := make(chan error, 1)
		go func() {
			result <- of(t, a, 0).Lead(t.Context(), func(ctx context.Context, term *election.Term) error {
				if running.Add(1) != 1 {
					t.Error("the function runs twice at once")
				}
				defer running.Add(-1)
				calls <- term
				if term.Number() > 1 {
					return nil
				}
				<-ctx.Done()
				if cause := context.Cause(ctx); !errors.Is(cause, election.ErrLost) {
					t.Errorf("cause = %v, want ErrLost", cause)
				}
				time.Sleep(time.Minute) // it takes far longer than it should
				return errors.New("discarded")
			})
		}()
		first := <-calls
		la.Cut()
		tb := campaign(t, b) // the lease has run out: nobody waits for the function
		if first.Valid() {
			t.Error("the cut leader's term is valid when another leads")
		}
		la.Heal()
		time.Sleep(30 * time.Second)
		if running.Load() != 1 || len(calls) > 0 {
			t.Error("want the first call still to run, and no other")
		}
		resign(t, tb)
		if third := <-calls; third.Number() != 3 {
			t.Errorf("leads again in term %d, want 3", third.Number())
		}
		if err := <-result; err != nil {
			t.Errorf("Lead = %v, want what the function returned while the term held", err)
		}
	})
}

// The function resigns by itself.
func TestLeadAfterTheFunctionResigned(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		e := of(t, join(t, s, "a"), 0)
		mine := errors.New("mine")
		err := e.Lead(within(t, time.Minute), func(ctx context.Context, term *election.Term) error {
			resign(t, term)
			<-ctx.Done()
			if cause := context.Cause(ctx); cause != election.ErrResigned {
				t.Errorf("cause = %v, want ErrResigned", cause)
			}
			return mine
		})
		if err != mine {
			t.Errorf("Lead = %v, want the function's error", err)
		}
	})
}

// Leave ends the terms, waits for the functions of Lead, and only then lets others
// lead.
func TestLeaveWaitsForLead(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		b := of(t, join(t, s, "b"), 0)
		begun := make(chan struct{})
		var stopped atomic.Bool
		result := make(chan error, 1)
		go func() {
			result <- of(t, a, 0).Lead(t.Context(), func(ctx context.Context, term *election.Term) error {
				close(begun)
				<-ctx.Done()
				if cause := context.Cause(ctx); !errors.Is(cause, election.ErrResigned) {
					t.Errorf("cause = %v, want ErrResigned", cause)
				}
				time.Sleep(10 * time.Second)
				stopped.Store(true)
				return nil
			})
		}()
		<-begun
		go func() {
			tb, err := b.Campaign(within(t, time.Minute))
			if err != nil {
				t.Errorf("Campaign: %v", err)
				return
			}
			if !stopped.Load() {
				t.Error("another leads while the function runs")
			}
			resign(t, tb)
		}()
		leave(t, a)
		if !stopped.Load() {
			t.Error("Leave returned before the function did")
		}
		if err := <-result; !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("Lead = %v after Leave, want why the node ended", err)
		}
		if _, err := of(t, a, 0).Campaign(within(t, time.Minute)); !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("Campaign after Leave = %v, want ErrClosed", err)
		}
		time.Sleep(time.Minute)
	})
}

// A term that nobody resigned has its grace when the node leaves, as when it is lost.
func TestLeaveWaitsForTheGrace(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		b := of(t, join(t, s, "b"), 0)
		term := campaign(t, of(t, a, 2*time.Second))
		var stopped atomic.Bool
		go func() {
			<-term.Context().Done()
			time.Sleep(1900 * time.Millisecond)
			stopped.Store(true)
		}()
		next := make(chan *election.Term)
		go func() { next <- campaign(t, b) }()
		synctest.Wait()
		leave(t, a)
		if context.Cause(term.Context()) == nil {
			t.Error("the node has left, and the term's context has not ended")
		}
		tb := <-next
		if !stopped.Load() {
			t.Error("another leads within the grace of a term")
		}
		resign(t, tb)
	})
}

// If ctx ends before the function has stopped, Leave writes nothing: the lease runs
// out, and the others see a failure.
func TestLeaveThatCannotWaitWritesNothing(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		begun, free := make(chan *election.Term, 1), make(chan struct{})
		result := make(chan error, 1)
		go func() {
			result <- of(t, a, 0).Lead(t.Context(), func(_ context.Context, term *election.Term) error {
				begun <- term
				<-free
				return nil
			})
		}()
		term := <-begun
		began := time.Now()
		if err := a.Leave(within(t, time.Second)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Leave = %v, want its context's cause", err)
		}
		if took := time.Since(began); took > 1100*time.Millisecond {
			t.Errorf("Leave returned after %v, its context ended after 1s", took)
		}
		if term.Valid() {
			t.Error("the term is valid after Leave")
		}
		began = time.Now()
		tb := campaign(t, of(t, b, 0))
		if took := time.Since(began); took < ttl/2 {
			t.Errorf("another leads after %v: something was given back", took)
		}
		if got := kindOf(t, b, "a"); got != fabric.Failed {
			t.Errorf("a is seen as %v, want failed", got)
		}
		close(free)
		if err := <-result; !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("Lead = %v, want ErrClosed", err)
		}
		resign(t, tb)
	})
}

// kindOf returns how pid departed, as n sees it.
func kindOf(t *testing.T, n *fabric.Node, pid fabric.PID) fabric.ChangeKind {
	t.Helper()
	for c, err := range n.Changes(within(t, time.Minute)) {
		if err != nil {
			t.Fatalf("%s never departed: %v", pid, err)
		}
		if c.Member.PID == pid && (c.Kind == fabric.Left || c.Kind == fabric.Failed) {
			return c.Kind
		}
	}
	return 0
}

func TestLeaveEndsCampaigns(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		tb := campaign(t, of(t, b, 0))
		waiting := make(chan error, 2)
		for range 2 { // one waits for the leader, one for its turn
			go func() {
				_, err := of(t, a, 0).Campaign(t.Context())
				waiting <- err
			}()
		}
		time.Sleep(time.Second)
		began := time.Now()
		leave(t, a)
		for range 2 {
			if err := <-waiting; !errors.Is(err, fabric.ErrClosed) {
				t.Errorf("Campaign = %v when the node left, want ErrClosed", err)
			}
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("Leave took %v", took)
		}
		resign(t, tb)
	})
}

// A resignation whose context ends goes on in the background.
func TestResignOverACutLink(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		inc := a.Incarnation()
		ta := campaign(t, of(t, a, 0))
		la.Cut()
		if err := ta.Resign(within(t, time.Second)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Resign over a cut link = %v, want its context's cause", err)
		}
		if ta.Valid() {
			t.Error("valid after Resign")
		}
		la.Heal()
		b := campaign(t, of(t, join(t, s, "b"), 0))
		if a.Incarnation() != inc {
			t.Error("the claim was free only after the lease had run out")
		}
		resign(t, b)
	})
}

func TestRestartUnderTheSamePID(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		join(t, s, "w")
		a, la := joinLink(t, s, "a")
		ta := campaign(t, of(t, a, 0))
		inc := a.Incarnation()
		crash(a, la)
		time.Sleep(3 * time.Millisecond)
		began := time.Now()
		a2 := join(t, s, "a")
		if took := time.Since(began); took < ttl/2 || took > ttl+ttl/50+500*time.Millisecond {
			t.Errorf("joined %v after the crash, want after the lease", took)
		}
		la.Heal() // what the first life had written last arrives now
		t2 := campaign(t, of(t, a2, 0))
		if t2.Token() <= ta.Token() || t2.Number() != 2 || a2.Incarnation() <= inc {
			t.Errorf("term %d, token %d, incarnation %d after 1, %d, %d", t2.Number(), t2.Token(), a2.Incarnation(), ta.Token(), inc)
		}
		time.Sleep(time.Minute)
		if !t2.Valid() {
			t.Error("the second life's term ended")
		}
		// And gracefully: at once.
		leave(t, a2)
		began = time.Now()
		a3 := join(t, s, "a")
		t3 := campaign(t, of(t, a3, 0))
		if took := time.Since(began); took > time.Second {
			t.Errorf("leading again %v after a graceful restart, want at once", took)
		}
		resign(t, t3)
	})
}

func TestDuplicatePID(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		term := campaign(t, of(t, a, 0))
		for range 3 {
			_, err := fabric.Join(within(t, time.Minute), fabric.Config{Cluster: "c", PID: "a", NATS: options(s.Link())})
			if !errors.Is(err, fabric.ErrPIDInUse) {
				t.Errorf("Join = %v, want ErrPIDInUse", err)
			}
		}
		if !term.Valid() || a.Context().Err() != nil {
			t.Error("a second process under the PID disturbed the first")
		}
		resign(t, term)
	})
}

// Another process takes the PID while the first is cut off for longer than a lease:
// the first is over, for good, and says why.
func TestPIDTakenWhileCutOff(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		ta := campaign(t, of(t, a, 0))
		la.Cut()
		a2 := join(t, s, "a")
		if ta.Valid() {
			t.Error("valid when another process has the PID")
		}
		t2 := campaign(t, of(t, a2, 0))
		la.Heal()
		<-a.Context().Done()
		if cause := context.Cause(a.Context()); !errors.Is(cause, fabric.ErrPIDInUse) {
			t.Errorf("the first node ends with %v, want ErrPIDInUse", cause)
		}
		if _, err := of(t, a, 0).Campaign(within(t, time.Minute)); !errors.Is(err, fabric.ErrPIDInUse) {
			t.Errorf("Campaign of the first = %v, want ErrPIDInUse", err)
		}
		time.Sleep(time.Minute)
		if !t2.Valid() {
			t.Error("the return of the first ended the second's term")
		}
		resign(t, t2)
	})
}

func TestOutageLongerThanTheLease(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		ta := campaign(t, of(t, a, 0))
		incs := []uint64{a.Incarnation(), b.Incarnation()}
		next := make(chan *election.Term, 1)
		go func() {
			term, err := of(t, b, 0).Campaign(within(t, time.Hour))
			if err != nil {
				t.Errorf("Campaign: %v", err)
			}
			next <- term
		}()
		time.Sleep(time.Second)
		s.Stop()
		synctest.Wait()
		time.Sleep(3 * ttl)
		if ta.Valid() || !errors.Is(context.Cause(ta.Context()), election.ErrLost) {
			t.Errorf("after an outage of three leases the term is valid: %t, cause %v", ta.Valid(), context.Cause(ta.Context()))
		}
		s.Start()
		synctest.Wait()
		term := <-next
		if !term.Valid() {
			t.Error("the next term is not valid")
		}
		time.Sleep(time.Second)
		if term.Number() != 2 {
			t.Errorf("term %d, want 2", term.Number())
		}
		if a.Incarnation() != incs[0] || b.Incarnation() != incs[1] {
			t.Error("the outage ended an incarnation")
		}
		resign(t, term)
	})
}

func TestVanishedBucket(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		ea, eb := of(t, a, 0), of(t, b, 0)
		ta := campaign(t, ea)
		next := make(chan *election.Term, 1)
		go func() {
			term, err := eb.Campaign(within(t, time.Hour))
			if err != nil {
				t.Errorf("Campaign: %v", err)
			}
			next <- term
		}()
		token := ta.Token()
		for range 3 {
			time.Sleep(time.Minute)
			if _, err := s.Connect().Request("$JS.API.STREAM.DELETE.KV_fab_c_production", nil, time.Second); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			<-ta.Context().Done()
			if cause := context.Cause(ta.Context()); !errors.Is(cause, election.ErrLost) {
				t.Errorf("cause = %v, want ErrLost", cause)
			}
			if took := time.Since(began); took > ttl {
				t.Errorf("lost %v after the bucket, want by the next renewal", took)
			}
			term := <-next
			if ta.Valid() {
				t.Error("two valid terms")
			}
			if term.Token() <= token {
				t.Errorf("token %d after %d", term.Token(), token)
			}
			if took := time.Since(began); took > 3*ttl {
				t.Errorf("leading again after %v", took)
			}
			ta, token = term, term.Token()
			ea, eb = eb, ea
			go func() {
				term, err := eb.Campaign(within(t, time.Hour))
				if err != nil && t.Context().Err() == nil {
					t.Errorf("Campaign: %v", err)
				}
				next <- term
			}()
		}
		resign(t, ta)
		resign(t, <-next)
	})
}

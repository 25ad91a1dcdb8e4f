package election_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// handedOver returns when a leader, a, has handed over to b, which is cut off and stops
// campaigning.
func handedOver(t *testing.T, s *natstest.Server) (b *election.Election, link *natstest.Link) {
	t.Helper()
	term := campaign(t, of(t, join(t, s, "a"), 0))
	n, link := joinLink(t, s, "b")
	b = of(t, n, 0)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := b.Campaign(ctx); ended <- err }()
	time.Sleep(time.Second)
	link.Cut()
	if _, err := term.Transfer(within(t, 100*time.Millisecond), "b"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Transfer to one that is cut off = %v, want that nobody leads yet", err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Campaign = %v, want its context's cause", err)
	}
	return b, link
}

// Whom the leader handed over to is gone: nobody leads, so nothing is taken.
func TestTryAfterAHandOverThatNobodyTook(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		_, link := handedOver(t, s)
		link.Heal()
		c := of(t, join(t, s, "c"), 0)
		if _, err := c.Leader(t.Context()); !errors.Is(err, election.ErrNoLeader) {
			t.Errorf("Leader = %v, want ErrNoLeader", err)
		}
		for n := range 2 {
			began := time.Now()
			term, err := c.Try(within(t, 10*time.Second))
			if err != nil {
				t.Fatalf("Try = %v, want to lead after the second that b has", err)
			}
			if took := time.Since(began); n == 0 && took < 900*time.Millisecond || took > 1100*time.Millisecond {
				t.Errorf("Try %d took %v, want the second that b has at first", n, took)
			}
			resign(t, term)
		}
	})
}

// Whom the leader handed over to comes within its second, and so does a Try of its own.
func TestTryDuringAHandOver(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		b, link := handedOver(t, s)
		c := of(t, join(t, s, "c"), 0)
		tried := make(chan error, 1)
		go func() { _, err := c.Try(within(t, 10*time.Second)); tried <- err }()
		time.Sleep(500 * time.Millisecond)
		link.Heal()
		began := time.Now()
		term, err := b.Try(within(t, 10*time.Second))
		if took := time.Since(began); err != nil || took > 100*time.Millisecond {
			t.Fatalf("Try of whom it was handed over to = %v after %v, want to lead at once", err, took)
		}
		if err := <-tried; !errors.Is(err, election.ErrTaken) {
			t.Errorf("Try of another = %v, want ErrTaken", err)
		}
		resign(t, term)
	})
}

// Preempt is for who campaigns: one that would not lead afterwards asks for nothing.
func TestTryDoesNotPreempt(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		term := campaign(t, ranked(t, join(t, s, "a"), 1, false))
		b := ranked(t, join(t, s, "b"), 2, true)
		for range 3 {
			if _, err := b.Try(within(t, time.Second)); !errors.Is(err, election.ErrTaken) {
				t.Errorf("Try beside a leader = %v, want ErrTaken", err)
			}
			time.Sleep(time.Second)
		}
		if !term.Valid() {
			t.Fatalf("the term ended for a Try: %v", context.Cause(term.Context()))
		}
		// The same node may campaign, and asks then.
		next := inBackground(t, b)
		<-term.Context().Done()
		resign(t, term)
		resign(t, <-next)
	})
}

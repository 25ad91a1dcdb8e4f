package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/fabric"
)

const (
	// callFor is how long a candidate that is not in the queue has to say that it stands.
	callFor = time.Second
	// comeFor is how long the next leader has to come: the second of whom the claim was
	// given to, then as long again for the others, and that again for it to be known.
	comeFor = 3 * time.Second
)

// Transfer ends the term and hands over to the process to, or to the one that comes
// first if to is empty. The caller has stopped the leader's work. It returns who
// leads then. A suspended term is handed over when it has resumed. If to does not stand for election, the term goes on and the error wraps
// [ErrNoCandidate]. If another leads because to did not come within a second, the
// error wraps [ErrNotTaken]. If ctx ends first, the term may have ended, see Valid;
// the handing over goes on.
func (t *Term) Transfer(ctx context.Context, to fabric.PID) (Leader, error) {
	l, err := t.transfer(ctx, string(to))
	if err != nil {
		return l, fmt.Errorf("election %s: transfer to %q: %w", t.e.cfg.Name, to, err)
	}
	return l, nil
}

func (t *Term) transfer(ctx context.Context, to string) (Leader, error) {
	to, err := t.chair.call(ctx, to)
	if err != nil {
		return Leader{}, err
	}
	if t.e.cfg.HoldOnSuspend && !t.Valid() {
		if err := t.grant.Confirm(ctx); err != nil && t.ctx.Err() == nil {
			return Leader{}, err
		}
	}
	if !t.Valid() && t.ctx.Err() == nil {
		return Leader{}, ErrLost // about to be
	}
	if t.ctx.Err() != nil {
		return Leader{}, context.Cause(t.ctx)
	}
	t.cancel(ErrHandOver)
	if err := t.grant.HandOver(ctx, to); err != nil {
		return Leader{}, err
	}
	l, err := t.e.after(ctx, t.Token())
	if err == nil && l.PID != fabric.PID(to) {
		err = fmt.Errorf("%w: %s leads", ErrNotTaken, l.PID)
	}
	return l, err
}

// call returns who is to be handed over to.
func (c *chair) call(ctx context.Context, to string) (string, error) {
	if to == "" {
		if first, ok := c.first(); ok {
			return first, nil
		}
		return "", ErrNoCandidate
	}
	deadline := time.NewTimer(callFor)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	if !c.has(to) {
		c.o.tell(to, memo{Op: opCall, Name: c.term.e.cfg.Name})
	}
	for !c.has(to) {
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-deadline.C:
			return "", ErrNoCandidate
		case <-tick.C:
		}
	}
	return to, nil
}

// after waits until a term later than token begins, and returns it.
func (e *Election) after(ctx context.Context, token uint64) (Leader, error) {
	for l, err := range e.Leaders(ctx) {
		if err != nil || l.Token > token {
			return l, err
		}
	}
	return Leader{}, context.Cause(ctx)
}

// AskTransfer asks the leader, whichever process it is, to hand over to the process
// to, or to the one that comes first if to is empty, and returns who leads then. The
// leader's work stops before that: its term's context ends with [ErrHandOver]. Any
// node of [fabric.RoleCandidate] or more may ask, a passive one, too; others get
// [fabric.ErrNotCandidate]. If to does not stand for election, or nobody does,
// the term goes on and the error wraps [ErrNoCandidate]; if nobody leads it is
// [ErrNoLeader]; if another leads because to did not come within a second,
// [ErrNotTaken].
func (e *Election) AskTransfer(ctx context.Context, to fabric.PID) (Leader, error) {
	now, err := e.Leader(ctx)
	if err != nil || now.PID == to {
		return now, err
	}
	l, err := e.demand(ctx, now, memo{Op: opHandOver, To: string(to)}, func(l Leader) bool { return l.Token > now.Token })
	if err == nil && to != "" && l.PID != to {
		err = fmt.Errorf("%w: %s leads", ErrNotTaken, l.PID)
	}
	if err != nil {
		return l, fmt.Errorf("election %s: ask for a transfer to %q: %w", e.cfg.Name, to, err)
	}
	return l, nil
}

// AskResign asks the leader, whichever process it is, to resign, and returns the term
// that ended when it has. The leader's work stops before that: its term's context ends
// with [ErrHandOver]. In Lead it campaigns again after a second. If nobody leads, the
// error wraps [ErrNoLeader]. Who may ask is said at [Election.AskTransfer].
func (e *Election) AskResign(ctx context.Context) (Leader, error) {
	now, err := e.Leader(ctx)
	if err != nil {
		return now, err
	}
	_, err = e.demand(ctx, now, memo{Op: opResign}, now.over)
	if err != nil {
		return now, fmt.Errorf("election %s: ask the leader to resign: %w", e.cfg.Name, err)
	}
	return now, nil
}

// over reports whether l's term is seen to have ended, when next is who leads. That may
// be of the past at first: an earlier leader says nothing of l.
func (l Leader) over(next Leader) bool { return next.PID == "" || next.Token > l.Token }

// demand sends m to the leader now again and again until done accepts who leads, or
// the leader refuses for a second. One that no longer leads, which it is from when it
// has handed over, refuses until the next is known: for comeFor.
func (e *Election) demand(ctx context.Context, now Leader, m memo, done func(Leader) bool) (Leader, error) {
	if e.host.Session.OwnOnly() { // its permissions do not reach the candidates
		return Leader{}, fabric.ErrNotCandidate
	}
	o, err := officeOf(e.node, e.host)
	if err != nil {
		return Leader{}, e.explain(err)
	}
	m.Name, m.Token, m.ID = e.cfg.Name, now.Token, nuid.Next()
	refused, forget := o.await(m.ID)
	defer forget()

	type outcome struct {
		leader Leader
		err    error
	}
	result := make(chan outcome, 1) // capacity 1: the goroutine ends, read or not
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for l, err := range e.Leaders(ctx) {
			if err != nil || done(l) {
				result <- outcome{l, err}
				return
			}
		}
	})
	again := time.NewTicker(callFor / 20)
	defer again.Stop()
	var since time.Time // the first refusal of those that follow each other; zero: none
	for {
		o.request(string(now.PID), m)
		select {
		case out := <-result:
			return out.leader, out.err
		case reason := <-refused: // it calls the candidate, so it may agree the next time
			if since.IsZero() {
				since = time.Now()
			}
			limit := callFor
			if errors.Is(reason, ErrNoLeader) {
				limit = comeFor
			}
			if time.Since(since) > limit {
				return Leader{}, reason
			}
			<-again.C
		case <-again.C: // it has agreed, or is far away
			since = time.Time{}
		}
	}
}

package election

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/natsfabric/natsfabric/internal/lease"
)

// A Term is one unbroken stretch of leadership.
type Term struct {
	e      *Election
	grant  *lease.Grant
	ctx    context.Context
	cancel context.CancelCauseFunc
	chair  *chair

	mu    sync.Mutex // guards the fields below
	asked bool       // another wants the term to end
	to    string     // whom it is to be handed over to, or nobody in particular
}

func newTerm(e *Election, o *office, g *lease.Grant) *Term {
	t := &Term{e: e, grant: g}
	t.ctx, t.cancel = context.WithCancelCause(context.WithoutCancel(g.Context()))
	ended := e.host.Session.Enter() // for Leave, which returns when all contexts have ended
	context.AfterFunc(g.Context(), func() {
		cause := context.Cause(g.Context())
		if errors.Is(cause, lease.ErrReleased) || errors.Is(cause, lease.ErrLeft) {
			t.cancel(ErrResigned)
			ended()
			return
		}
		t.cancel(fmt.Errorf("%w: %w", ErrLost, cause))
		ended() // a Logger may take its time
		e.cfg.Logger.Warn("term lost", "election", e.cfg.Name, "pid", e.node.PID(), "term", g.Term, "err", cause)
	})
	t.chair = o.preside(t)
	context.AfterFunc(g.Context(), func() { o.adjourn(t.chair) })
	return t
}

// ask ends the term's context because another is to lead, to if that is somebody. The
// claim stays ours until Resign.
func (t *Term) ask(to string) {
	t.mu.Lock()
	first := !t.asked && t.ctx.Err() == nil
	if first {
		t.asked, t.to = true, to
	}
	t.mu.Unlock()
	if first {
		t.cancel(ErrHandOver)
		t.e.cfg.Logger.Info("asked to hand over", "election", t.e.cfg.Name, "pid", t.e.node.PID(), "term", t.Number(), "to", to)
	}
}

// wanted reports whether the term was asked to end, and for whom.
func (t *Term) wanted() (asked bool, to string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.asked, t.to
}

// Context ends Config.Grace before the claim can be another's; with
// Config.HoldOnSuspend only when it is known to have become so, and what must not be done
// meanwhile asks Valid. Its cause wraps [ErrLost], or is [ErrResigned] or [ErrHandOver].
// Do the leader's work under it. After ErrHandOver nobody can lead before Resign is called.
func (t *Term) Context() context.Context { return t.ctx }

// Valid reports whether the term holds at this moment, by the clock: it is false
// also when the machine slept and no timer has fired yet. It is no promise about
// the next moment: fence what must not be done twice.
func (t *Term) Valid() bool { return t.ctx.Err() == nil && t.grant.Valid() }

// Confirm asks the bucket whether the term holds, and returns nil if it did at one
// moment since the call: a renewal of the lease was stored that was sent after it
// began. It costs one write, which all terms of the node share. Otherwise the error
// wraps why the term has ended, or ctx's cause. Valid is as safe and costs nothing;
// Confirm is for who must know that no later leader has been before now.
func (t *Term) Confirm(ctx context.Context) error {
	err := t.grant.Confirm(ctx)
	if err == nil && t.ctx.Err() == nil {
		return nil
	}
	if t.ctx.Err() == nil && t.grant.Context().Err() != nil {
		<-t.ctx.Done() // about to end, with the public cause
	}
	if t.ctx.Err() != nil {
		err = context.Cause(t.ctx)
	}
	return fmt.Errorf("election %s: confirm: %w", t.e.cfg.Name, err)
}

// Number counts the terms of the election: 1, 2, 3...
func (t *Term) Number() uint64 { return t.grant.Term }

// Token is the fencing token: the revision at which the claim was taken, larger
// than that of every earlier term.
func (t *Term) Token() uint64 { return t.grant.Token }

// Resign ends the term and gives the claim back, to whom it was asked to hand over to
// if it was; another may lead when it returns nil. The caller has stopped the leader's
// work. If ctx ends first, the giving back
// goes on in the background. It is harmless after the term has ended.
func (t *Term) Resign(ctx context.Context) error {
	_, to := t.wanted()
	err := t.grant.HandOver(ctx, to)
	t.cancel(ErrResigned)
	if err != nil {
		return fmt.Errorf("election %s: resign: %w", t.e.cfg.Name, err)
	}
	return nil
}

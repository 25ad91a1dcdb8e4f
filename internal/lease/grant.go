package lease

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// A Grant is one stretch of holding a claim. Whoever acquired it must call Release
// or ReleaseWhenLost, or nobody can have the claim while our session lives.
type Grant struct {
	Term  uint64    // counts the holders of the claim
	Token uint64    // the revision at which it was taken: rises with every grant
	Since time.Time // by our clock

	c      *Claim
	record ClaimRecord
	hold   atomic.Pointer[Hold] // another one after a lasting grant has resumed
	policy Policy
	book   ledger
	ctx    context.Context
	cancel context.CancelCauseFunc
	once   sync.Once
	done   chan struct{} // closed when the record is given back
	err    error         // of giving it back; read after done
	exit   func()        // the work under it has ended, or its grace to
}

func newGrant(c *Claim, hold *Hold, p Policy, token uint64, r ClaimRecord) *Grant {
	g := &Grant{
		Term: r.Term, Token: token, Since: r.Since,
		c: c, record: r, policy: p, done: make(chan struct{}), exit: c.s.Enter(),
	}
	g.hold.Store(hold)
	g.book.init(c.s.life, token)
	end := hold.Context(p.Grace)
	g.ctx, g.cancel = context.WithCancelCause(context.WithoutCancel(end))
	ended := func() bool { return true }
	if p.Lasting {
		c.s.spawn(g.follow)
	} else {
		ended = context.AfterFunc(end, func() { g.cancel(context.Cause(end)) })
	}
	heeded := g.heed()
	left := context.AfterFunc(c.s.leaving, func() { g.cancel(context.Cause(c.s.leaving)) })
	context.AfterFunc(g.ctx, func() {
		ended() // nothing is left to watch for
		left()
		heeded()
		time.AfterFunc(p.Grace, g.exit)
	})
	return g
}

// heed ends the grant when a person has removed its record, as that is how one is taken
// from a holder that lives. Others leave the claim alone for a while then (see giveWay).
func (g *Grant) heed() (stop func()) {
	var looking atomic.Bool
	stop, err := g.c.s.b.OnRemoval(g.c.key, func() {
		if looking.Swap(true) {
			return
		}
		g.c.s.spawn(func() {
			defer looking.Store(false)
			for n := 0; n < looks; n++ { // the first may show the past
				e, err := g.c.s.b.Get(g.ctx, g.c.key)
				if err == nil && e.Value == nil && e.Rev > g.Token {
					g.cancel(fmt.Errorf("%w: the record of %s was removed", ErrLost, g.c.key))
					return
				}
				if kv.Pause(g.ctx, n) != nil {
					return
				}
			}
		})
	})
	if err != nil {
		return func() {} // the connection is closed, and the session about to end
	}
	return stop
}

// follow keeps a lasting grant with its incarnation: a hold that lapsed and was
// resumed proves that nobody could take the claim between.
func (g *Grant) follow() {
	s := g.c.s
	inc := g.record.Inc
	for {
		st, changed := s.state.Load()
		switch {
		case st.Hold != nil && st.Hold.Incarnation == inc:
			g.hold.Store(st.Hold)
		case st.Hold != nil:
			g.cancel(fmt.Errorf("%w: incarnation %d was ended", ErrLost, inc))
		case st.Lapsed != inc:
			g.cancel(st.Err)
		}
		select {
		case <-changed:
		case <-g.ctx.Done():
			return
		case <-s.life.Done():
			return
		}
	}
}

// Valid reports whether the grant may still be acted on. It is false while a
// lasting grant is suspended.
func (g *Grant) Valid() bool { return g.ctx.Err() == nil && g.hold.Load().Valid(g.policy.Grace) }

// Suspended reports whether the grant is lasting, and its lease has run out without
// anyone known to have ended the incarnation: it may yet be valid again.
func (g *Grant) Suspended() bool {
	return g.policy.Lasting && g.ctx.Err() == nil && !g.hold.Load().Valid(g.policy.Grace)
}

// Context ends with the grant; its cause is [ErrLost], [ErrReleased], or why the
// session ended. That of a lasting grant does not end while it is suspended.
func (g *Grant) Context() context.Context { return g.ctx }

// Confirm returns nil when the bucket has taken a renewal that was sent after the
// call began, and the grant is valid: at one moment between nobody else held the
// claim. Otherwise the error is why the grant ended, or ctx's cause.
func (g *Grant) Confirm(ctx context.Context) error {
	s := g.c.s
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(g.ctx, func() { cancel(context.Cause(g.ctx)) })()
	for {
		if err := s.Confirm(ctx); err != nil {
			return err
		}
		if st := s.state.Get(); g.policy.Lasting && st.Hold != nil && st.Hold.Incarnation == g.record.Inc {
			g.hold.Store(st.Hold) // as follow is about to
		}
		if g.ctx.Err() != nil {
			return context.Cause(g.ctx)
		}
		if g.Valid() {
			return nil
		}
	}
}

// Release ends the grant and gives the claim back. The caller has stopped what it
// did under it. It returns when that is written, or with ctx; the writing goes on
// then, as long as the session does, but for no longer than a lease once that leaves.
func (g *Grant) Release(ctx context.Context) error { return g.HandOver(ctx, "") }

// HandOver is Release for pid to take the claim first: others leave it alone for a
// second. The first of Release and HandOver counts.
func (g *Grant) HandOver(ctx context.Context, pid string) error {
	g.cancel(ErrReleased)
	g.once.Do(func() {
		exit := g.c.s.Enter() // Leave waits for resignations, too
		g.c.s.spawn(func() {
			defer g.exit()
			defer exit()
			defer close(g.done)
			defer func() { <-g.c.turn }()
			g.err = g.giveBack(pid)
		})
	})
	select {
	case <-g.done:
		return g.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ReleaseWhenLost gives the claim back some time after the grant was lost: not
// before the lease under which it was lost could have run out, so that the holder
// has its grace to stop. Without this a session that resumes would keep a claim
// that nobody acts on.
func (g *Grant) ReleaseWhenLost() {
	s := g.c.s
	s.spawn(func() {
		select {
		case <-g.done:
			return
		case <-s.life.Done():
			return
		case <-g.ctx.Done():
		}
		if context.Cause(g.ctx) == ErrReleased || s.leaving.Err() != nil {
			return
		}
		timer := time.NewTimer(g.policy.Grace + margin(s.cfg.Lease))
		defer timer.Stop()
		select {
		case <-timer.C:
			g.Release(s.life) // its outcome is the log's: nobody waits for it
		case <-g.done:
		case <-s.life.Done():
		}
	})
}

package lease

import (
	"context"
	"errors"
	"sync"
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
	hold   *Hold
	grace  time.Duration
	ctx    context.Context
	cancel context.CancelCauseFunc
	once   sync.Once
	done   chan struct{} // closed when the record is given back
	err    error         // of giving it back; read after done
}

func newGrant(c *Claim, hold *Hold, grace time.Duration, token uint64, r ClaimRecord) *Grant {
	g := &Grant{
		Term: r.Term, Token: token, Since: r.Since,
		c: c, record: r, hold: hold, grace: grace, done: make(chan struct{}),
	}
	end := hold.Context(grace)
	g.ctx, g.cancel = context.WithCancelCause(context.WithoutCancel(end))
	ended := context.AfterFunc(end, func() { g.cancel(context.Cause(end)) })
	left := context.AfterFunc(c.s.leaving, func() { g.cancel(context.Cause(c.s.leaving)) })
	context.AfterFunc(g.ctx, func() { ended(); left() }) // nothing is left to watch for
	return g
}

// Valid reports whether the grant may still be acted on.
func (g *Grant) Valid() bool { return g.ctx.Err() == nil && g.hold.Valid(g.grace) }

// Context ends with the grant; its cause is [ErrLost], [ErrReleased], or why the
// session ended.
func (g *Grant) Context() context.Context { return g.ctx }

// Release ends the grant and gives the claim back. The caller has stopped what it
// did under it. It returns when that is written, or with ctx; the writing goes on
// then, as long as the session does.
func (g *Grant) Release(ctx context.Context) error {
	g.cancel(ErrReleased)
	g.once.Do(func() {
		exit := g.c.s.Enter() // Leave waits for resignations, too
		g.c.s.spawn(func() {
			defer exit()
			defer close(g.done)
			defer func() { <-g.c.turn }()
			g.err = g.c.release(g.c.s.life, g.Token, g.record)
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
		timer := time.NewTimer(g.grace + margin(s.cfg.Lease))
		defer timer.Stop()
		select {
		case <-timer.C:
			g.Release(s.life) // its outcome is the log's: nobody waits for it
		case <-g.done:
		case <-s.life.Done():
		}
	})
}

// A Holder is who holds a claim, or the zero Holder.
type Holder struct {
	PID   string
	Inc   uint64
	Term  uint64
	Token uint64
	Since time.Time
}

// Holder reads who holds the claim named key, without waiting. That is nobody in a
// bucket that does not exist, and if the holder was not heard for two leases, even
// if there is no process that would end it.
func (s *Session) Holder(ctx context.Context, key string) (Holder, error) {
	e, err := s.b.Get(ctx, key)
	if errors.Is(err, kv.ErrNoBucket) {
		return Holder{}, nil
	}
	if err != nil || e.Value == nil {
		return Holder{}, err
	}
	r, err := ParseClaim(e)
	if err != nil || !r.Held() {
		return Holder{}, err
	}
	over, err := s.IsOver(ctx, r.PID, r.Inc)
	if err != nil || over {
		return Holder{}, err
	}
	now, err := s.b.Clock(ctx)
	if err != nil {
		return Holder{}, err
	}
	session, err := s.b.Get(ctx, KeySession(r.PID))
	if err != nil || !Fresh(session, r.Inc, now) {
		return Holder{}, err
	}
	return Holder{PID: r.PID, Inc: r.Inc, Term: r.Term, Token: e.Rev, Since: r.Since}, nil
}

// Fresh reports whether e is a session of the incarnation that may be alive, to judge
// by the server's clock. It is for showing: nothing is taken over on its word.
func Fresh(e kv.Entry, inc uint64, now time.Time) bool {
	r, err := ParseSession(e)
	return err == nil && r.Inc == inc && now.Sub(e.Stored) < 2*r.Lease()
}

// IsOver reads whether incarnation inc of pid is over.
func (s *Session) IsOver(ctx context.Context, pid string, inc uint64) (bool, error) {
	e, err := s.b.Get(ctx, KeyPID(pid))
	return e.Rev > inc, err
}

// Observe calls report with the holder of the claim named key, now and whenever it
// is another, vacancy included, until ctx ends or report returns false. Holders
// that follow each other quickly may be passed over; the last never is.
func (s *Session) Observe(ctx context.Context, key string, report func(Holder) bool) error {
	claim, err := s.b.Watch(ctx, key)
	if err != nil {
		return err
	}
	defer claim.Close()
	var pid *kv.Watch // of the holder's PID
	defer func() {
		if pid != nil {
			pid.Close()
		}
	}()
	var now, told Holder
	first := true
	for {
		var pidChanged <-chan struct{}
		if pid != nil {
			pidChanged = pid.Changed()
		}
		synced := true
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-pidChanged:
			entries, _ := pid.Take()
			for _, e := range entries {
				if e.Rev > now.Inc {
					now = Holder{}
				}
			}
		case <-claim.Changed():
			var entries []kv.Entry
			entries, synced = claim.Take()
			for _, e := range entries {
				now = holderOf(e, now)
			}
			if pid != nil {
				pid.Close()
				pid = nil
			}
			if now.PID != "" {
				if over, err := s.IsOver(ctx, now.PID, now.Inc); err == nil && over {
					now = Holder{}
				}
			}
			if now.PID != "" {
				if pid, err = s.b.Watch(ctx, KeyPID(now.PID)); err != nil {
					return err
				}
			}
		}
		if synced && (first || now != told) {
			if !report(now) {
				return nil
			}
			first, told = false, now
		}
	}
}

// holderOf returns whom e names; a foreign record changes nothing.
func holderOf(e kv.Entry, before Holder) Holder {
	if e.Value == nil {
		return Holder{}
	}
	r, err := ParseClaim(e)
	if err != nil {
		return before
	}
	if !r.Held() {
		return Holder{}
	}
	return Holder{PID: r.PID, Inc: r.Inc, Term: r.Term, Token: e.Rev, Since: r.Since}
}

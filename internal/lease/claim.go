package lease

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// A Claim is something that one session at a time may hold: an election, the
// coordination of a roster. There is one Claim per key and session, and at most one
// acquisition or grant of it at a time; further ones queue.
type Claim struct {
	s   *Session
	key string
	// turn is taken from the beginning of an acquisition until its outcome is
	// settled, or until the grant has ended and its record is given back.
	turn chan struct{} // capacity 1: full means taken

	campaigns atomic.Int32 // acquisitions under way
	vacancy   atomic.Bool  // the one whose turn it is found nobody to wait for
	grant     atomic.Pointer[Grant]
}

// A Phase is what a claim is to its session at the moment.
type Phase uint8

const (
	PhaseIdle      Phase = iota // not pursued
	PhaseWaiting                // another holds it
	PhaseVacant                 // pursued, and nobody is known to hold it
	PhaseHeld                   // a grant of ours is valid
	PhaseSuspended              // a lasting grant of ours may be valid again
)

// Phase returns what the claim is at this moment, by the clock.
func (c *Claim) Phase() Phase {
	if g := c.grant.Load(); g != nil {
		switch {
		case g.Valid():
			return PhaseHeld
		case g.Suspended():
			return PhaseSuspended
		}
	}
	switch {
	case c.campaigns.Load() == 0:
		return PhaseIdle
	case c.vacancy.Load():
		return PhaseVacant
	}
	return PhaseWaiting
}

// enter counts an acquisition until leave is called.
func (c *Claim) enter() (leave func()) {
	c.campaigns.Add(1)
	return func() { c.campaigns.Add(-1) }
}

// Claim returns the session's claim on key.
func (s *Session) Claim(key string) *Claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.claims[key]
	if !ok {
		c = &Claim{s: s, key: key, turn: make(chan struct{}, 1)}
		s.claims[key] = c
	}
	return c
}

// A Policy says how a claim is acquired, and what its grant is like.
type Policy struct {
	// Grace is how long before the claim can be another's the grant's context ends.
	Grace time.Duration
	// Lasting grants do not end when the lease runs out, but are not valid until it
	// is renewed; they end when the incarnation is over.
	Lasting bool
	// Free: a claim that is held is [ErrTaken], instead of being waited for. One that
	// was given to another and is not taken is waited for, as by everyone.
	Free bool
	// Proof: if the holder's process is one of this machine, it is watched, and ended
	// as soon as the kernel says that it is gone.
	Proof bool
	// Priority is written down for others to see.
	Priority int

	// Seen is told who holds the claim, while it is waited for. May be nil.
	Seen func(Holder)
	// Delay is asked how long a claim that is free is left to others. Nil: not at all.
	Delay func() time.Duration
	// Near is asked whether this session watches the holder's and ends it when its
	// lease has run out, or leaves that to others; and again when the channel closes.
	// Nil: it does.
	Near func() (bool, <-chan struct{})
}

// Acquire waits until the claim is ours. The grant's context ends grace before the
// claim can be another's. An error is ctx's cause, why the session is not held, or
// [ErrNotCandidate], a [*ForeignError], or a [*kv.PermissionError]; a write that may
// still land by then is settled and given back in the background.
func (c *Claim) Acquire(ctx context.Context, grace time.Duration) (*Grant, error) {
	return c.AcquireBy(ctx, Policy{Grace: grace})
}

// AcquireFree is Acquire for one who does not want to wait for the holder: if there
// is one, the error is [ErrTaken].
func (c *Claim) AcquireFree(ctx context.Context, grace time.Duration) (*Grant, error) {
	return c.AcquireBy(ctx, Policy{Grace: grace, Free: true})
}

// OwnOnly reports whether the session writes its own records only.
func (s *Session) OwnOnly() bool { return s.cfg.OwnOnly }

// AcquireBy is Acquire under the policy p.
func (c *Claim) AcquireBy(ctx context.Context, p Policy) (*Grant, error) {
	if c.s.cfg.OwnOnly {
		return nil, ErrNotCandidate
	}
	defer c.enter()()
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.s.leaving.Done():
		return nil, context.Cause(c.s.leaving)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.s.leaving, func() { cancel(context.Cause(c.s.leaving)) })()
	for n := 0; ; n++ {
		hold, err := c.s.Held(ctx)
		if err != nil {
			<-c.turn
			return nil, err
		}
		var g *Grant
		if hold.Valid(p.Grace) {
			g, err = c.try(ctx, hold, p)
		} else { // what is left of the hold would be its grace: renew first
			c.s.Poke()
			err = kv.Pause(ctx, 0)
		}
		if g != nil {
			return g, nil
		}
		if d, ok := errors.AsType[*doubtError](err); ok {
			c.giveUp(d) // and the turn with it
			return nil, context.Cause(ctx)
		}
		_, foreign := errors.AsType[*ForeignError](err)
		if !foreign && err != nil && !errors.Is(err, ErrTaken) && !errors.Is(err, kv.ErrPermission) {
			c.s.cfg.Logger.Debug("cannot claim yet", "key", c.key, "err", err)
			err = kv.Pause(ctx, n)
		}
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			<-c.turn
			return nil, err
		}
	}
}

// A doubtError is a claim of which nobody knows yet whether it was stored.
type doubtError struct {
	rev    uint64
	record ClaimRecord
}

func (e *doubtError) Error() string { return "claim of " + e.record.Key + ": outcome unknown" }

// try waits until nobody else holds the claim and takes it once. Nil and no error:
// another was faster, or our lease ended meanwhile.
func (c *Claim) try(ctx context.Context, hold *Hold, p Policy) (*Grant, error) {
	rev, term, err := c.vacant(ctx, hold, p)
	if err != nil {
		return nil, err
	}
	if !hold.Valid(p.Grace) {
		return nil, nil // it ended while we waited: no term for that
	}
	r := ClaimRecord{
		Key: c.key, State: stateHeld, PID: c.s.cfg.PID, Inc: hold.Incarnation,
		Term: term + 1, Since: time.Now().UTC(), Priority: p.Priority, Nonce: nuid.Next(),
	}
	token, err := c.s.b.Settle(ctx, c.key, rev, encode(r), 0)
	switch {
	case errors.Is(err, kv.ErrReplaced):
		// What we hold is of the old bucket, too: no claim before the PID is taken
		// again, which waits until the new one is open.
		hold.end(fmt.Errorf("%w: %w", ErrLost, err))
		c.s.Poke()
		return nil, nil
	case errors.Is(err, kv.ErrRefused):
		return nil, nil
	case errors.Is(err, kv.ErrUnknown):
		return nil, &doubtError{rev, r}
	case err != nil:
		return nil, err
	}
	g := newGrant(c, hold, p, token, r)
	if ctx.Err() == nil && g.Valid() {
		c.grant.Store(g)
		return g, nil
	}
	g.cancel(ErrReleased)
	g.book.shut()
	if err := c.release(ctx, token, r, ""); ctx.Err() == nil {
		return nil, err
	}
	return nil, &doubtError{rev, r} // ctx allows no writing: it is given back later
}

// vacant waits until the claim may be taken, and returns the revision to take it
// at and the term that ended. If it must not wait, a holder is [ErrTaken].
func (c *Claim) vacant(ctx context.Context, hold *Hold, p Policy) (rev, term uint64, err error) {
	w := &waiter{c: c, p: p}
	defer w.close()
	c.vacancy.Store(true)
	e, err := c.s.b.Get(ctx, c.key)
	for err == nil {
		var r ClaimRecord
		if e.Value != nil {
			if r, err = ParseClaim(e); err != nil {
				break
			}
		}
		if r.Held() && r.PID == c.s.cfg.PID && r.Inc == hold.Incarnation {
			return e.Rev, r.Term, nil // left behind: nobody else can have it
		}
		free := !r.Held()
		if !free {
			if p.Seen != nil {
				p.Seen(r.holder(e.Rev))
			}
			if free, e, err = w.outlive(ctx, e, r); !free {
				continue
			}
		}
		var changed bool
		if changed, e, err = w.giveWay(ctx, e, r); err == nil && !changed {
			return e.Rev, r.Term, nil
		}
	}
	return 0, 0, err
}

// giveUp settles, in the background, a claim whose campaign ended before its
// outcome was known, and gives it back if it landed: nobody else could take it,
// for its holder lives. The turn is free after that.
func (c *Claim) giveUp(d *doubtError) {
	c.s.spawn(func() {
		defer func() { <-c.turn }()
		token, err := c.s.b.Resettle(c.s.life, c.key, d.rev, encode(d.record), 0)
		if err == nil {
			err = c.release(c.s.life, token, d.record, "")
		}
		if err != nil && !errors.Is(err, kv.ErrRefused) {
			c.s.cfg.Logger.Debug("a claim in doubt was left to its lease", "key", c.key, "err", err)
		}
	})
}

// release writes that the claim, taken or last written at rev, is free, for to first
// if that is somebody.
func (c *Claim) release(ctx context.Context, rev uint64, r ClaimRecord, to string) error {
	r.State, r.To, r.Nonce, r.Since = stateReleased, to, nuid.Next(), time.Now().UTC()
	if to != "" {
		r.State = stateHandover
	}
	if err := c.s.yield(ctx, c.key, rev, encode(r), 0); err != nil {
		return fmt.Errorf("release %s: %w", c.key, err)
	}
	return nil
}

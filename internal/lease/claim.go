package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
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

// Acquire waits until the claim is ours. The grant's context ends grace before the
// claim can be another's. An error is ctx's cause, why the session is not held, or
// [ErrNotCandidate], a [*ForeignError], or a [*kv.PermissionError]; a write that may still land by then is settled and given back
// in the background.
func (c *Claim) Acquire(ctx context.Context, grace time.Duration) (*Grant, error) {
	return c.acquire(ctx, grace, true)
}

// AcquireFree is Acquire for one who does not want to wait for the holder: if there
// is one, the error is [ErrTaken].
func (c *Claim) AcquireFree(ctx context.Context, grace time.Duration) (*Grant, error) {
	return c.acquire(ctx, grace, false)
}

func (c *Claim) acquire(ctx context.Context, grace time.Duration, wait bool) (*Grant, error) {
	if c.s.cfg.OwnOnly {
		return nil, ErrNotCandidate
	}
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
		if hold.Valid(grace) {
			g, err = c.try(ctx, hold, grace, wait)
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
func (c *Claim) try(ctx context.Context, hold *Hold, grace time.Duration, wait bool) (*Grant, error) {
	rev, term, err := c.vacant(ctx, hold, wait)
	if err != nil {
		return nil, err
	}
	if !hold.Valid(grace) {
		return nil, nil // it ended while we waited: no term for that
	}
	r := ClaimRecord{
		Key: c.key, State: stateHeld, PID: c.s.cfg.PID, Inc: hold.Incarnation,
		Term: term + 1, Since: time.Now().UTC(), Nonce: nuid.Next(),
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
	g := newGrant(c, hold, grace, token, r)
	if ctx.Err() == nil && g.Valid() {
		return g, nil
	}
	g.cancel(ErrReleased)
	if err := c.release(ctx, token, r); ctx.Err() == nil {
		return nil, err
	}
	return nil, &doubtError{rev, r} // ctx allows no writing: it is given back later
}

// vacant waits until the claim may be taken, and returns the revision to take it
// at and the term that ended. If it must not wait, a holder is [ErrTaken].
func (c *Claim) vacant(ctx context.Context, hold *Hold, wait bool) (rev, term uint64, err error) {
	var w *kv.Watch // once there is something to wait for
	e, err := c.s.b.Get(ctx, c.key)
	for err == nil {
		if e.Value == nil {
			return e.Rev, 0, nil
		}
		var r ClaimRecord
		if r, err = ParseClaim(e); err != nil {
			break
		}
		mine := r.PID == c.s.cfg.PID && r.Inc == hold.Incarnation
		if !r.Held() || mine {
			return e.Rev, r.Term, nil
		}
		var over bool
		if !wait {
			over, err = c.s.IsOver(ctx, r.PID, r.Inc)
			if err == nil && !over {
				err = ErrTaken
			}
		} else {
			if w == nil {
				if w, err = c.s.b.Watch(ctx, c.key); err != nil {
					break
				}
				defer w.Close()
			}
			over, e, err = c.next(ctx, w, e, r)
		}
		if over && err == nil {
			return e.Rev, r.Term, nil
		}
	}
	return 0, 0, err
}

// next waits until the holder that e names is over, which it makes so when its
// lease has run out, or until there is a newer record.
func (c *Claim) next(ctx context.Context, w *kv.Watch, e kv.Entry, r ClaimRecord) (bool, kv.Entry, error) {
	ctx, cancel := context.WithCancel(ctx)
	result := make(chan error, 1) // capacity 1: the goroutine ends, read or not
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { result <- c.s.outlive(ctx, r.PID, r.Inc, nil) })
	for {
		select {
		case err := <-result:
			return err == nil, e, err
		case <-w.Changed():
			entries, _ := w.Take()
			for _, newer := range entries {
				if newer.Rev > e.Rev {
					return false, newer, nil
				}
			}
		}
	}
}

// giveUp settles, in the background, a claim whose campaign ended before its
// outcome was known, and gives it back if it landed: nobody else could take it,
// for its holder lives. The turn is free after that.
func (c *Claim) giveUp(d *doubtError) {
	c.s.spawn(func() {
		defer func() { <-c.turn }()
		token, err := c.s.b.Resettle(c.s.life, c.key, d.rev, encode(d.record), 0)
		if err == nil {
			err = c.release(c.s.life, token, d.record)
		}
		if err != nil && !errors.Is(err, kv.ErrRefused) {
			c.s.cfg.Logger.Debug("a claim in doubt was left to its lease", "key", c.key, "err", err)
		}
	})
}

// release writes that the claim, taken at rev, is free.
func (c *Claim) release(ctx context.Context, rev uint64, r ClaimRecord) error {
	r.State, r.Nonce, r.Since = stateReleased, nuid.Next(), time.Now().UTC()
	_, err := c.s.b.Settle(ctx, c.key, rev, encode(r), 0)
	if errors.Is(err, kv.ErrRefused) {
		return nil // it is another's already
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", c.key, err)
	}
	return nil
}

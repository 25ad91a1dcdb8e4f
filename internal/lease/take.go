package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// take takes the PID and writes the first session record. old is an incarnation of
// this process that it knows to be fenced, or 0.
func (s *Session) take(ctx context.Context, old uint64) (*Hold, error) {
	for n := 0; ; n++ {
		inc, err := s.takePID(ctx, old)
		if err == nil {
			var hold *Hold
			if hold, err = s.first(ctx, inc); err == nil {
				return hold, nil
			}
			old = inc
		}
		_, held := errors.AsType[*HeldError](err)
		_, foreign := errors.AsType[*ForeignError](err)
		_, denied := errors.AsType[*kv.PermissionError](err)
		if held || foreign || denied || ctx.Err() != nil {
			return nil, err
		}
		s.cfg.Logger.Debug("cannot take the PID yet", "pid", s.cfg.PID, "err", err)
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return nil, fmt.Errorf("%w: %w", waitErr, err)
		}
	}
}

// takePID makes the PID's claim ours and returns the incarnation.
func (s *Session) takePID(ctx context.Context, old uint64) (uint64, error) {
	key := KeyPID(s.cfg.PID)
	for {
		e, err := s.b.Get(ctx, key)
		if err != nil {
			return 0, err
		}
		if e.Value != nil {
			r, err := ParsePID(e)
			if err != nil {
				return 0, err
			}
			if r.Held() && r.Proc != s.proc {
				alive := func() error { return &HeldError{PID: r.PID, Host: r.Host, Since: r.Since} }
				if err := s.outlive(ctx, s.cfg.PID, e.Rev, alive); err != nil {
					return 0, err
				}
				continue
			}
		}
		r := PIDRecord{
			Key: key, State: stateHeld, PID: s.cfg.PID, Host: s.cfg.Host,
			Since: s.since, Proc: s.proc, Nonce: nuid.Next(),
		}
		inc, err := s.b.Settle(ctx, key, e.Rev, encode(r), 0)
		if errors.Is(err, kv.ErrRefused) {
			continue // somebody was faster: see who
		}
		if err != nil {
			return 0, err
		}
		s.mu.Lock()
		s.inc = inc
		s.mu.Unlock()
		return inc, nil
	}
}

// first writes the incarnation's first session record and reads it back: the PID
// is held from its acknowledgement on.
func (s *Session) first(ctx context.Context, inc uint64) (*Hold, error) {
	var sent Instant
	for n := 0; ; n++ {
		s.mu.Lock()
		r, gen := s.record(inc, 1), s.metaGen
		s.mu.Unlock()
		sent = s.cfg.Clock.Now()
		err := s.putSession(r)
		if err == nil {
			s.acked(false)
			s.renewed.Store(gen)
			break
		}
		if errors.Is(err, kv.ErrRefused) || ctx.Err() != nil {
			return nil, err
		}
		if err := kv.Pause(ctx, n); err != nil {
			return nil, err
		}
	}
	e, err := s.b.Get(ctx, KeySession(s.cfg.PID))
	if err != nil {
		return nil, err
	}
	if r, err := ParseSession(e); err != nil || r.Inc != inc {
		return nil, fmt.Errorf("session of %s is not read back", s.cfg.PID)
	}
	hold := newHold(inc, s.cfg.Lease, s.cfg.Clock, sent)
	if !hold.Valid(0) {
		return nil, fmt.Errorf("%w before it was read back", ErrLost)
	}
	s.watchHold(hold)
	return hold, nil
}

// outlive returns when incarnation inc of pid is over, and ends it when its lease
// has run out. alive, if not nil, is called at a sign of life; its error ends the
// wait.
func (s *Session) outlive(ctx context.Context, pid string, inc uint64, alive func() error) error {
	claim, err := s.b.Watch(ctx, KeyPID(pid))
	if err != nil {
		return err
	}
	defer claim.Close()
	session, err := s.b.Watch(ctx, KeySession(pid))
	if err != nil {
		return err
	}
	defer session.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var v Vigil
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-claim.Changed():
			entries, _ := claim.Take()
			for _, e := range entries {
				if e.Rev > inc {
					return nil
				}
			}
		case <-session.Changed():
			if s.look(&v, session, inc) && alive != nil {
				return alive()
			}
		case <-timer.C:
		}
		over, wait := s.challenge(ctx, &v, pid, inc)
		if over {
			return nil
		}
		timer.Reset(wait)
	}
}

// look takes what a watch of one session learned.
func (s *Session) look(v *Vigil, w *kv.Watch, inc uint64) (renewed bool) {
	entries, synced := w.Take()
	for _, e := range entries {
		r, err := ParseSession(e)
		if e.Value != nil && (err != nil || r.Inc != inc) {
			// Foreign, or of another incarnation: no sign of this one's life.
			v.See(e.Rev, s.b.Longest(), e.Seen)
			continue
		}
		if e.Value == nil {
			v.See(e.Rev, s.b.Longest(), e.Seen)
			continue
		}
		renewed = v.See(e.Rev, r.Lease(), e.Seen) || renewed
	}
	if synced && v.since.IsZero() {
		v.See(0, s.b.Longest(), time.Now())
	}
	return renewed
}

// retryChallenge is the wait after a challenge that came to nothing.
const retryChallenge = 50 * time.Millisecond

// challenge ends incarnation inc of pid if its time has come. It returns whether
// it is over, and else how long to wait before trying again.
func (s *Session) challenge(ctx context.Context, v *Vigil, pid string, inc uint64) (over bool, wait time.Duration) {
	if v.since.IsZero() {
		return false, renewEvery(s.cfg.Lease)
	}
	if !s.mayChallenge(v) {
		return false, retryChallenge
	}
	guard, due := v.Due()
	if wait := time.Until(due); wait > 0 {
		return false, wait
	}
	err := s.End(ctx, pid, inc, guard)
	switch {
	case err == nil:
		return true, 0
	case errors.Is(err, kv.ErrRefused):
		// It was renewed, or another process was faster; the watches will say.
		// Absence is read again, in case the watch missed what ended it.
		e, readErr := s.b.Get(ctx, KeyPID(pid))
		if readErr == nil && e.Rev > inc {
			return true, 0
		}
		if e, readErr := s.b.Get(ctx, KeySession(pid)); readErr == nil && e.Rev != guard {
			v.See(e.Rev, v.lease, e.Seen)
		}
		return false, retryChallenge
	case errors.Is(err, kv.ErrUnknown):
		// The store does not answer us; perhaps nor its holder.
		v.Postpone(time.Now())
		return false, retryChallenge
	}
	return false, retryChallenge
}

// End marks incarnation inc of pid dead, if its session still has revision guard.
// The caller has watched that revision for as long as a [Vigil] demands, or knows
// that the process has ended.
func (s *Session) End(ctx context.Context, pid string, inc, guard uint64) error {
	r := PIDRecord{
		Key: KeyPID(pid), State: stateDead, PID: pid, Inc: inc,
		Host: s.cfg.Host, Since: time.Now().UTC(), Proc: s.proc, Nonce: nuid.Next(),
	}
	_, err := s.b.Put(ctx, kv.Write{
		Key: r.Key, Value: encode(r), GuardKey: KeySession(pid), GuardRev: guard, TTL: keepEnded,
	})
	if err == nil {
		s.cfg.Logger.Info("ended a session whose lease ran out", "pid", pid, "rev", inc)
	}
	return err
}

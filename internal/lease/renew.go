package lease

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/beat"
	"github.com/natsfabric/natsfabric/internal/kv"
)

// keep renews the session until its incarnation is known to be over, and returns
// why. While renewals are not acknowledged the hold runs out; if one is after that,
// the incarnation was never ended and a new hold begins.
func (s *Session) keep(hold *Hold) error {
	for n := uint64(2); ; n++ {
		if !s.idle() {
			return s.life.Err()
		}
		sent, err := s.renewOnce(hold, n)
		if err != nil {
			hold.end(fmt.Errorf("%w: %w", ErrLost, err))
			return err
		}
		if hold.renew(sent) {
			s.confirm()
			continue
		}
		hold = newHold(s.life, hold.Incarnation, s.cfg.Lease, s.cfg.Clock, sent)
		s.watchHold(hold)
		s.cfg.Logger.Info("lease resumed", "pid", s.cfg.PID, "rev", hold.Incarnation)
		s.become(State{Hold: hold})
		s.confirm()
	}
}

// confirm announces the last renewal that was acknowledged, once its hold is known.
func (s *Session) confirm() {
	s.mu.Lock()
	n := s.ackOf
	s.mu.Unlock()
	s.confirmed.Store(n)
}

// Confirm returns when a renewal has been stored that was sent after the call
// began: at that moment the incarnation was not over.
func (s *Session) Confirm(ctx context.Context) error {
	s.mu.Lock()
	n := s.sends
	s.mu.Unlock()
	s.Poke()
	for {
		acked, changed := s.confirmed.Load()
		if acked > n {
			return nil
		}
		select {
		case <-changed:
		case <-s.leaving.Done():
			return context.Cause(s.leaving)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watchHold announces the end of hold when its deadline passes.
func (s *Session) watchHold(hold *Hold) {
	ctx := hold.Context(0)
	s.spawn(func() {
		select {
		case <-ctx.Done():
		case <-s.life.Done():
			return
		}
		next := State{Err: context.Cause(ctx)}
		if next.Err == ErrLost { // at its deadline, and not told that it is over
			next.Lapsed = hold.Incarnation
		}
		s.state.Update(func(st State) (State, bool) { return next, st.Hold == hold })
	})
}

// idle waits for the time of the next renewal. It reports false when the session
// is over.
func (s *Session) idle() bool {
	every, wait := beatOf(s.cfg.Lease), renewEvery(s.cfg.Lease)
	if rand.N(16) == 0 {
		wait -= every // those who began together part
	}
	timer := time.NewTimer(beat.In(time.Now(), wait, every))
	defer timer.Stop()
	select {
	case <-s.life.Done():
		return false
	case <-s.poke:
	case <-timer.C:
	}
	return true
}

// renewOnce writes the session until a write is acknowledged, and returns when
// that one was sent. An error means that the incarnation is over.
func (s *Session) renewOnce(hold *Hold, n uint64) (Instant, error) {
	failed := false
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	var gone <-chan bool // nil while nobody is asked whether the bucket is lost
	for try := 0; ; try++ {
		s.mu.Lock()
		r, gen := s.record(hold.Incarnation, n), s.metaGen
		s.sends++
		send := s.sends
		s.mu.Unlock()
		sent := s.cfg.Clock.Now() // before the round trip, not after
		err := s.putSession(r)
		if err == nil {
			s.acked(failed)
			if s.renewed.Get() < gen {
				s.renewed.Store(gen)
			}
			s.mu.Lock()
			s.ackOf = send
			s.mu.Unlock()
			return sent, nil
		}
		failed = true
		if errors.Is(err, kv.ErrReplaced) {
			return Instant{}, fmt.Errorf("%w: %w", ErrLost, err)
		}
		if errors.Is(err, kv.ErrRefused) {
			if err := s.over(hold); err != nil {
				return Instant{}, err
			}
		} else if errors.Is(err, nats.ErrNoResponders) && gone == nil {
			gone = s.gone(ctx)
		}
		if !hold.Valid(0) {
			hold.end(ErrLost)
		}
		if err := kv.PauseUpTo(ctx, try, s.cfg.Lease/20); err != nil {
			return Instant{}, err
		}
		select {
		case lost := <-gone:
			if lost {
				return Instant{}, fmt.Errorf("%w: the bucket is gone", ErrLost)
			}
			gone = nil
		default:
		}
	}
}

// gone asks whether the bucket is known to be lost. While the servers elect a leader nobody
// answers that either, and a renewal sent meanwhile may be the first that is taken.
func (s *Session) gone(ctx context.Context) <-chan bool {
	answer := make(chan bool, 1) // it may be that nobody waits any more
	s.spawn(func() {
		ctx, cancel := context.WithTimeout(ctx, answerWithin(s.cfg.Lease))
		defer cancel()
		answer <- s.b.Gone(ctx)
	})
	return answer
}

func (s *Session) record(inc, n uint64) SessionRecord {
	return SessionRecord{
		Key: KeySession(s.cfg.PID), PID: s.cfg.PID, Inc: inc, Host: s.cfg.Host, Since: s.since,
		LeaseMS: s.cfg.Lease.Milliseconds(), Meta: s.meta, N: n,
	}
}

// putSession writes r once, under the guard that its incarnation has the PID.
func (s *Session) putSession(r SessionRecord) error {
	ctx, cancel := context.WithTimeout(s.life, answerWithin(s.cfg.Lease))
	defer cancel()
	_, err := s.b.Put(ctx, kv.Write{
		Key: r.Key, Value: encode(r), GuardKey: KeyPID(s.cfg.PID), GuardRev: r.Inc, TTL: keepFor(s.cfg.Lease),
	})
	return err
}

// over reads whether hold's incarnation is over, after a renewal was refused. A
// server that was just deposed may refuse what the next one accepts, and show a
// record that is still ours or older than it: then it is not over. To believe it
// would free what is held before its grace has passed.
func (s *Session) over(hold *Hold) error {
	inc := hold.Incarnation
	ctx, cancel := context.WithTimeout(s.life, answerWithin(s.cfg.Lease))
	defer cancel()
	e, err := s.b.Get(ctx, KeyPID(s.cfg.PID))
	if err != nil || e.Rev == inc || e.Rev < inc && hold.Valid(0) && !s.b.Gone(ctx) {
		return nil
	}
	if r, err := ParsePID(e); err == nil && r.Held() && r.Proc != s.proc {
		return fmt.Errorf("%w: a process on %s took the PID", ErrLost, r.Host)
	}
	return fmt.Errorf("%w: incarnation %d was ended", ErrLost, inc)
}

// acked notes an acknowledgement, and the outage that it ends.
func (s *Session) acked(failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !s.lastAck.IsZero() {
		gap := now.Sub(s.lastAck)
		if failed {
			s.outageAt, s.outageOf = now, gap
		}
		// Another acknowledgement may come right behind the one that ended a long gap.
		if gap >= s.gapOf || now.Sub(s.gapAt) > longestCatchUp {
			s.gapAt, s.gapOf = now, gap
		}
	}
	s.lastAck = now
}

// mayChallenge reports whether silence means anything at the moment, and applies
// the last outage to v. While our own renewals are not acknowledged nobody else's
// may be, and after an outage everyone gets a whole lease to be heard again. If our
// lease is longer than v's, so that we would notice an outage too late, it asks for
// a renewal. Its acknowledgement says that the store answers now, and not since when: what
// others sent meanwhile gets a moment to arrive.
func (s *Session) mayChallenge(v *Vigil) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastAck.IsZero() {
		return true // joining: our clock began when we came
	}
	if time.Since(s.lastAck) > outage(v.lease) {
		s.Poke()
		return false
	}
	if s.outageOf > outage(v.lease) {
		v.Postpone(s.outageAt)
	}
	return s.gapOf <= outage(v.lease) || time.Since(s.gapAt) >= catchUp(v.lease)
}

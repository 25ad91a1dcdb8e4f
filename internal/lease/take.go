package lease

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// take takes the PID and writes the first session record. An incarnation that this
// process had before is fenced.
func (s *Session) take(ctx context.Context) (*Hold, error) {
	for n := 0; ; n++ {
		inc, err := s.takePID(ctx)
		if err == nil {
			var hold *Hold
			if hold, err = s.first(ctx, inc); err == nil {
				return hold, nil
			}
		}
		_, held := errors.AsType[*HeldError](err)
		_, foreign := errors.AsType[*ForeignError](err)
		_, denied := errors.AsType[*kv.PermissionError](err)
		if held || foreign || denied || ctx.Err() != nil {
			return nil, err
		}
		if errors.Is(err, kv.ErrReplaced) {
			if err := s.b.Open(ctx); err != nil {
				return nil, err
			}
		}
		s.cfg.Logger.Debug("cannot take the PID yet", "pid", s.cfg.PID, "err", err)
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return nil, fmt.Errorf("%w: %w", waitErr, err)
		}
	}
}

// takePID makes the PID's claim ours and returns the incarnation.
func (s *Session) takePID(ctx context.Context) (uint64, error) {
	key := KeyPID(s.cfg.PID)
	for {
		e, err := s.b.Get(ctx, key)
		if err != nil {
			return 0, err
		}
		prev := ""
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
			prev = r.State
		}
		r := PIDRecord{
			Key: key, State: stateHeld, PID: s.cfg.PID, Host: s.cfg.Host,
			Since: s.since, Prev: prev, Process: thisProcess(), Proc: s.proc, Nonce: nuid.Next(),
		}
		inc, err := s.b.Settle(ctx, key, e.Rev, encode(r), 0)
		if errors.Is(err, kv.ErrRefused) && !errors.Is(err, kv.ErrReplaced) {
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
		_, denied := errors.AsType[*kv.PermissionError](err)
		if denied || errors.Is(err, kv.ErrRefused) || ctx.Err() != nil {
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
	hold := newHold(s.life, inc, s.cfg.Lease, s.cfg.Clock, sent)
	if !hold.Valid(0) {
		return nil, fmt.Errorf("%w before it was read back", ErrLost)
	}
	s.watchHold(hold)
	return hold, nil
}

package lease

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/latest"
)

// Config describes a session.
type Config struct {
	PID     string
	Host    string
	Lease   time.Duration
	Meta    map[string]string
	Passive bool  // takes no PID, holds nothing; watches only
	OwnOnly bool  // takes no claims and ends nobody: writes the PID's own records only
	Clock   Clock // default SystemClock
	Logger  *slog.Logger
}

// A State is what a session is at the moment.
type State struct {
	Hold *Hold // nil unless held
	Err  error // why it is not; with Ended, why it never will be again
	// Lapsed is the incarnation that is not held because its lease ran out, and of
	// which nobody knows whether it is over: it may be resumed.
	Lapsed uint64
	// Ended: left, or another process has the PID.
	Ended bool
}

// A Session is the life of one process under one PID. It renews its record, takes
// the PID again when it was lost, and ends when it leaves or finds another process
// under the PID.
type Session struct {
	b   *kv.Bucket
	cfg Config
	// proc tells this process from every other, in the records it wrote.
	proc  string
	since time.Time
	// awaitExit is awaitOther, but in tests.
	awaitExit func(ctx context.Context, process string) error

	state latest.Value[State]
	// leaving ends when Leave begins, with the cause; work under the session waits
	// for it and then finishes.
	leaving context.Context
	leave   context.CancelCauseFunc
	// life ends when the session's goroutines must.
	life context.Context
	kill context.CancelFunc
	wg   sync.WaitGroup // our goroutines
	work workers        // what Leave waits for

	poke chan struct{} // capacity 1: asks for a renewal now

	mu       sync.Mutex // guards the fields below
	meta     map[string]string
	metaGen  uint64
	claims   map[string]*Claim
	inc      uint64 // last incarnation taken
	lastAck  time.Time
	outageAt time.Time     // when the last outage ended
	outageOf time.Duration // how long it was
	gapAt    time.Time     // when the longest of the last gaps between acknowledgements ended
	gapOf    time.Duration // how long it was
	closed   bool          // no goroutine may begin any more
	reserved map[string]bool
	shared   map[string]any
	sends    uint64 // renewals that were sent
	ackOf    uint64 // the last of them that was acknowledged

	renewed   latest.Value[uint64] // newest metaGen that is stored
	confirmed latest.Value[uint64] // ackOf, once the hold is known
}

// Start takes cfg.PID in b and returns once the first renewal is acknowledged and
// read back. A PID whose holder lives is a [*HeldError] on the first renewal seen;
// one whose holder left is taken at once, one whose holder died after its lease.
// Whatever else stands in the way is retried until ctx ends. A passive session
// starts at once, without I/O.
func Start(ctx context.Context, b *kv.Bucket, cfg Config) (*Session, error) {
	if cfg.Clock == nil {
		cfg.Clock = SystemClock
	}
	s := &Session{
		b: b, cfg: cfg, proc: nuid.Next(), since: time.Now().UTC(), meta: cfg.Meta,
		poke: make(chan struct{}, 1), claims: map[string]*Claim{}, awaitExit: awaitOther,
	}
	s.leaving, s.leave = context.WithCancelCause(context.WithoutCancel(ctx))
	s.life, s.kill = context.WithCancel(context.WithoutCancel(ctx))
	if cfg.Passive {
		s.state.Store(State{Err: ErrPassive})
		return s, nil
	}
	hold, err := s.take(ctx)
	if err != nil {
		s.giveBack(ctx)
		s.end()
		return nil, err
	}
	s.state.Store(State{Hold: hold})
	s.spawn(func() { s.run(hold) })
	return s, nil
}

// Bucket returns the bucket.
func (s *Session) Bucket() *kv.Bucket { return s.b }

// PID returns the PID.
func (s *Session) PID() string { return s.cfg.PID }

// Candidate reports whether the session takes claims.
func (s *Session) Candidate() bool { return !s.cfg.OwnOnly && !s.cfg.Passive }

// Lease returns the session's lease.
func (s *Session) Lease() time.Duration { return s.cfg.Lease }

// State returns the state and a channel that is closed when it changes.
func (s *Session) State() (State, <-chan struct{}) { return s.state.Load() }

// Leaving returns a context that ends when the session begins to leave, or has
// ended for another cause.
func (s *Session) Leaving() context.Context { return s.leaving }

// Held waits until the session is held and returns the hold.
func (s *Session) Held(ctx context.Context) (*Hold, error) {
	for {
		st, changed := s.state.Load()
		switch {
		case s.leaving.Err() != nil:
			return nil, context.Cause(s.leaving)
		case st.Ended, s.cfg.Passive:
			return nil, st.Err
		case st.Hold != nil && st.Hold.Valid(0):
			return st.Hold, nil
		}
		select {
		case <-changed:
		case <-s.leaving.Done():
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(renewEvery(s.cfg.Lease)): // a hold that is past its deadline and not yet replaced
		}
	}
}

// Poke asks for a renewal now: the connection is back.
func (s *Session) Poke() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// SetMeta shows meta from now on, and returns when a renewal with it is stored.
func (s *Session) SetMeta(ctx context.Context, meta map[string]string) error {
	if s.cfg.Passive {
		return ErrPassive
	}
	s.mu.Lock()
	s.meta = meta
	s.metaGen++
	gen := s.metaGen
	s.mu.Unlock()
	s.Poke()
	for {
		stored, changed := s.renewed.Load()
		if stored >= gen {
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

// run keeps the session held, and takes the PID again after a loss.
func (s *Session) run(hold *Hold) {
	for {
		err := s.keep(hold)
		if s.life.Err() != nil {
			return
		}
		s.become(State{Err: err})
		s.cfg.Logger.Warn("lease lost", "pid", s.cfg.PID, "rev", hold.Incarnation, "err", err)
		s.mu.Lock()
		s.lastAck, s.outageOf, s.gapOf = time.Time{}, 0, 0 // as one that joins: nothing is renewed now
		s.mu.Unlock()
		if hold, err = s.retake(); err != nil {
			if s.life.Err() == nil {
				s.fail(err)
			}
			return
		}
		s.cfg.Logger.Info("lease taken again", "pid", s.cfg.PID, "rev", hold.Incarnation)
		s.become(State{Hold: hold})
	}
}

// become sets the state, unless the session has ended.
func (s *Session) become(next State) {
	s.state.Update(func(st State) (State, bool) {
		if st.Ended && next.Hold != nil {
			next.Hold.end(st.Err)
		}
		return next, !st.Ended
	})
}

// retake opens the bucket, which may be a new one, and takes the PID.
func (s *Session) retake() (*Hold, error) {
	for n := 0; ; n++ {
		err := s.b.Open(s.life)
		if err == nil {
			var hold *Hold
			if hold, err = s.take(s.life); err == nil {
				return hold, nil
			}
			_, held := errors.AsType[*HeldError](err)
			if held || errors.Is(err, kv.ErrForeign) {
				return nil, err
			}
		}
		if kv.Pause(s.life, n) != nil {
			return nil, err
		}
		s.cfg.Logger.Warn("cannot take the PID again yet", "pid", s.cfg.PID, "err", err)
		_, config := errors.AsType[*kv.ConfigError](err)
		_, lease := errors.AsType[*kv.LeaseError](err)
		if config || lease || errors.Is(err, kv.ErrPermission) || errors.Is(err, kv.ErrForeign) { // a person must mend it: that takes longer
			for range 1 << min(n, 5) {
				kv.Pause(s.life, 3)
			}
		}
	}
}

// Reserve reports whether the name is free in this process, and takes it until
// release is called: two groups of one name would write one key.
func (s *Session) Reserve(name string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserved[name] {
		return nil, false
	}
	if s.reserved == nil {
		s.reserved = map[string]bool{}
	}
	s.reserved[name] = true
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.reserved, name)
	}), true
}

// Shared returns what there is one of in the session under the name, and makes it if
// there is none.
func (s *Session) Shared(name string, make func() (any, error)) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.shared[name]; ok {
		return v, nil
	}
	v, err := make()
	if err == nil {
		if s.shared == nil {
			s.shared = map[string]any{}
		}
		s.shared[name] = v
	}
	return v, err
}

// Want writes a record that is valid for one incarnation of this process, under
// the guard that it has the PID. It returns when the write is acknowledged; an
// error that wraps [kv.ErrRefused] says that the incarnation is over.
func (s *Session) Want(ctx context.Context, key string, inc uint64, value []byte, ttl time.Duration) error {
	for n := 0; ; n++ {
		_, err := s.b.Put(ctx, kv.Write{Key: key, Value: value, GuardKey: KeyPID(s.cfg.PID), GuardRev: inc, TTL: ttl})
		if err == nil {
			return nil
		}
		if errors.Is(err, kv.ErrRefused) {
			if over, readErr := s.IsOver(ctx, s.cfg.PID, inc); readErr == nil && over {
				return err
			}
		}
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return errors.Join(waitErr, err)
		}
	}
}

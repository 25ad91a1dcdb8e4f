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
	Clock   Clock // default SystemClock
	Logger  *slog.Logger
}

// A State is what a session is at the moment.
type State struct {
	Hold *Hold // nil unless held
	Err  error // why it is not; with Ended, why it never will be again
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
	closed   bool          // no goroutine may begin any more
	reserved map[string]bool

	renewed latest.Value[uint64] // newest metaGen that is stored
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
		poke: make(chan struct{}, 1), claims: map[string]*Claim{},
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
		s.cfg.Logger.Warn("lease lost", "pid", s.cfg.PID, "rev", hold.Incarnation, "err", err)
		s.become(State{Err: err})
		s.mu.Lock()
		s.lastAck, s.outageOf = time.Time{}, 0 // as one that joins: nothing is renewed now
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
		}
		_, held := errors.AsType[*HeldError](err)
		_, foreign := errors.AsType[*ForeignError](err)
		if held || foreign || kv.Pause(s.life, n) != nil {
			return nil, err
		}
		s.cfg.Logger.Warn("cannot take the PID again yet", "pid", s.cfg.PID, "err", err)
		_, config := errors.AsType[*kv.ConfigError](err)
		_, lease := errors.AsType[*kv.LeaseError](err)
		if config || lease { // a person must mend it: that takes longer
			for range 1 << min(n, 5) {
				kv.Pause(s.life, 3)
			}
		}
	}
}

// giveBack writes that the PID is free, if a Start that failed has taken it, so
// that the next one need not wait for a lease that nobody holds.
func (s *Session) giveBack(ctx context.Context) {
	s.mu.Lock()
	inc := s.inc
	s.mu.Unlock()
	if inc == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := s.writeLeft(ctx, inc); err != nil {
		s.cfg.Logger.Debug("PID not given back", "pid", s.cfg.PID, "err", err)
	}
}

// writeLeft writes that incarnation inc of ours has left.
func (s *Session) writeLeft(ctx context.Context, inc uint64) error {
	r := PIDRecord{
		Key: KeyPID(s.cfg.PID), State: stateLeft, PID: s.cfg.PID, Inc: inc,
		Host: s.cfg.Host, Since: time.Now().UTC(), Proc: s.proc, Nonce: nuid.Next(),
	}
	_, err := s.b.Settle(ctx, r.Key, inc, encode(r), keepEnded)
	if errors.Is(err, kv.ErrRefused) {
		return nil // it was ended by another, which is as good
	}
	return err
}

// Fail ends the session without a record: the connection is gone for good.
func (s *Session) Fail(cause error) { s.fail(cause); s.kill() }

func (s *Session) fail(cause error) {
	s.leave(cause)
	s.state.Update(func(st State) (State, bool) {
		if st.Hold != nil {
			st.Hold.end(cause)
		}
		return State{Err: cause, Ended: true}, !st.Ended
	})
}

// Leave ends everything that is held under the session, waits for the work under
// it, and gives the PID back. If ctx ends first it gives nothing back: the lease
// runs out. Nor does it try for longer than a lease. It returns when no goroutine of the session is left. It may be called
// again, and then waits for the first call.
func (s *Session) Leave(ctx context.Context) error {
	s.leave(ErrLeft)
	err := s.work.wait(ctx)
	s.mu.Lock()
	inc := s.inc
	s.mu.Unlock()
	st := s.state.Get()
	s.fail(ErrLeft) // before the record is sent: no validity check succeeds again
	s.end()
	if err != nil || s.cfg.Passive || st.Ended {
		return err
	}
	// When our lease has run out the others see to it; without one, even sooner.
	patience := s.cfg.Lease
	if st.Hold == nil {
		patience = min(patience, time.Second)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.writeLeft(ctx, inc)
}

// spawn runs f in a goroutine that Leave waits for; after Leave, in the caller's,
// where it ends at once because life has.
func (s *Session) spawn(f func()) {
	s.mu.Lock()
	if !s.closed {
		s.wg.Go(f)
		f = func() {}
	}
	s.mu.Unlock()
	f()
}

// end stops the session's goroutines and waits for them.
func (s *Session) end() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.kill()
	s.wg.Wait()
}

// workers counts what Leave waits for.
type workers struct {
	mu   sync.Mutex // guards the fields below
	n    int
	idle chan struct{} // closed when n falls to 0
}

// Enter says that work under the session begins; Leave waits for the returned
// function to be called.
func (s *Session) Enter() (exit func()) {
	w := &s.work
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n == 0 {
		w.idle = make(chan struct{})
	}
	w.n++
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.n--; w.n == 0 {
			close(w.idle)
		}
	})
}

func (w *workers) wait(ctx context.Context) error {
	w.mu.Lock()
	idle, n := w.idle, w.n
	w.mu.Unlock()
	if n == 0 {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
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

package lease

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/internal/kv"
)

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
	return s.yield(ctx, r.Key, inc, encode(r), keepEnded)
}

// yield writes value, which gives key up, over our record at rev. If it is another's
// already, that is as good. So a refusal counts if there is a newer record, or another
// bucket, or neither for long: it may be of a server that was deposed and does not know
// ours.
func (s *Session) yield(ctx context.Context, key string, rev uint64, value []byte, ttl time.Duration) error {
	var first time.Time
	for n := 0; ; n++ {
		_, err := s.b.Settle(ctx, key, rev, value, ttl)
		if !errors.Is(err, kv.ErrRefused) {
			return err
		}
		if n == 0 {
			first = time.Now()
		}
		e, readErr := s.b.Get(ctx, key)
		if readErr == nil && e.Rev > rev || s.b.Lost(ctx, rev) || time.Since(first) > 2*s.cfg.Lease {
			return nil
		}
		if err := kv.Pause(ctx, n); err != nil {
			return err
		}
	}
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

// parting returns a context for giving back what is held. It ends with the session; if that
// leaves, a lease after it began to, or after the call: when our lease has run out the
// others see to it.
func (s *Session) parting() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(s.life)
	stop := context.AfterFunc(s.leaving, func() {
		timer := time.AfterFunc(s.cfg.Lease, cancel)
		context.AfterFunc(ctx, func() { timer.Stop() })
	})
	return ctx, func() { stop(); cancel() }
}

// Leave ends everything that is held under the session, waits for the work under
// it, and the grace of the grants that nobody released, and gives the PID back. If ctx ends first it gives nothing back: the lease
// runs out. Nor does it try to give anything back for longer than a lease. It returns when no goroutine of the session is left. It may be called
// again, and then waits for the first call.
func (s *Session) Leave(ctx context.Context) error {
	s.leave(ErrLeft)
	err := s.work.wait(ctx)
	st := s.state.Get()
	s.fail(ErrLeft) // before the record is sent: no validity check succeeds again
	s.end()
	s.mu.Lock()
	inc := s.inc // nobody takes the PID any more
	s.mu.Unlock()
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

package lease

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// witness returns when it has seen the process behind incarnation inc of pid end, and
// has ended the incarnation, under the guard of its session: of what was read of it while
// the process lived, and as a renewal of the dead may have been on its way, of what is
// read until a guard holds.
func (s *Session) witness(ctx context.Context, pid string, inc uint64) error {
	e, err := s.b.Get(ctx, KeyPID(pid))
	if err != nil {
		return err
	}
	r, err := ParsePID(e)
	switch {
	case err != nil:
		return err
	case e.Rev != inc || !r.Held():
		return errors.New("it is not the holder of its PID")
	}
	session, err := s.b.Watch(ctx, KeySession(pid))
	if err != nil {
		return err
	}
	defer session.Close()
	var guard atomic.Uint64 // the last that was read
	following, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { s.follow(following, session, pid, inc, &guard) })
	if err := s.awaitExit(ctx, r.Process); err != nil {
		return err
	}
	s.cfg.Logger.Info("saw the process of a session end", "pid", pid, "rev", inc, "process", r.Process)
	if rev := guard.Load(); rev != 0 && s.End(ctx, pid, inc, rev) == nil {
		return nil
	}
	for n := 0; ; n++ {
		rev, err := s.sessionOf(ctx, pid, inc)
		if err == nil && s.End(ctx, pid, inc, rev) == nil {
			return nil
		}
		if over, err := s.IsOver(ctx, pid, inc); err == nil && over {
			return nil
		}
		if err := kv.Pause(ctx, n); err != nil {
			return err
		}
	}
}

// sessionOf reads the revision of the session of an incarnation. It must be its own: that
// of the next one, which lives, would be as good a guard, and so would its absence.
func (s *Session) sessionOf(ctx context.Context, pid string, inc uint64) (rev uint64, err error) {
	e, err := s.b.Get(ctx, KeySession(pid))
	if err != nil {
		return 0, err
	}
	r, err := ParseSession(e)
	if err != nil {
		return 0, err // absent or foreign
	}
	if r.Inc != inc {
		return 0, errors.New("it has another session")
	}
	return e.Rev, nil
}

// follow keeps in rev what sessionOf returned last, until ctx ends. The feed says when to
// read, and nothing else: a person can publish on it.
func (s *Session) follow(ctx context.Context, session *kv.Watch, pid string, inc uint64, rev *atomic.Uint64) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-session.Changed():
		}
		session.Take()
		if n, err := s.sessionOf(ctx, pid, inc); err == nil {
			rev.Store(n)
		}
	}
}

// awaitOther is awaitExit for a process that is not this one.
func awaitOther(ctx context.Context, process string) error {
	if process == thisProcess() {
		return errors.New("it is this process")
	}
	return awaitExit(ctx, process)
}

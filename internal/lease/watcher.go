package lease

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// retryChallenge is the wait after a challenge that came to nothing.
const retryChallenge = 50 * time.Millisecond

// A Watcher watches one incarnation of one PID, and ends it when its lease has run
// out. It is for one goroutine.
type Watcher struct {
	s   *Session
	pid string
	inc uint64
	// born: what was learned before counts from here, because the incarnation is
	// younger than a record that an earlier one left behind.
	born time.Time
	v    Vigil
	// told is the revision whose record is known from the feed only, where a person can
	// publish, and with it the lease that it states.
	told uint64
	// denied is why the server will not let us end it, if it does not.
	denied error
}

// Watcher returns a watcher of an incarnation that was seen to be held.
func (s *Session) Watcher(pid string, inc uint64) *Watcher {
	return &Watcher{s: s, pid: pid, inc: inc, born: time.Now()}
}

// See takes what was learned of the PID's session; an entry without a value says
// that there is none. It reports whether it is a sign of life.
func (w *Watcher) See(e kv.Entry) (renewed bool) {
	if e.Seen.Before(w.born) {
		e.Seen = w.born
	}
	// Absent, foreign, or of another incarnation: nothing of this one is known, so its
	// lease may be the longest there is.
	lease := w.s.b.Longest()
	r, err := ParseSession(e)
	alive := err == nil && r.Inc == w.inc
	if alive {
		lease = r.Lease()
	}
	read := e.Value == nil || !e.Stored.IsZero()
	switch guard, _ := w.v.Due(); {
	case !read && (e.Rev != guard || w.v.since.IsZero()):
		w.told = e.Rev
	case read && e.Rev == w.told:
		w.told = 0
		w.v.Amend(lease)
	}
	return w.v.See(e.Rev, lease, e.Seen) && alive
}

// Challenge ends the incarnation if its time has come. It returns whether it is
// over, and else how long to wait before challenging again.
func (w *Watcher) Challenge(ctx context.Context) (over bool, wait time.Duration) {
	if w.v.since.IsZero() {
		return false, renewEvery(w.s.cfg.Lease) // nothing read yet
	}
	guard, due := w.v.Due()
	if wait := time.Until(due); wait > 0 {
		return false, wait
	}
	if guard != 0 && guard == w.told { // the record decides
		e, err := w.s.b.Get(ctx, KeySession(w.pid))
		if err != nil {
			return false, retryChallenge
		}
		w.See(e)
		return false, 0
	}
	if !w.s.mayChallenge(&w.v) {
		return false, retryChallenge
	}
	if _, due := w.v.Due(); time.Until(due) > 0 {
		return false, time.Until(due) // put off
	}
	err := w.s.End(ctx, w.pid, w.inc, guard)
	switch {
	case err == nil:
		return true, 0
	case errors.Is(err, kv.ErrRefused):
		// Renewed, or ended by another: read which, in case the feed missed it.
		if over, err := w.s.IsOver(ctx, w.pid, w.inc); err == nil && over {
			return true, 0
		}
		if e, err := w.s.b.Get(ctx, KeySession(w.pid)); err == nil {
			w.See(e)
		}
	case errors.Is(err, kv.ErrPermission):
		w.denied = err
		return false, renewEvery(w.s.cfg.Lease)
	case errors.Is(err, kv.ErrUnknown):
		w.v.Postpone(time.Now()) // the store does not answer us; perhaps nor its holder
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
		s.cfg.Logger.Info("ended a session", "pid", pid, "rev", inc)
	}
	return err
}

// outlive returns when incarnation inc of pid is over, and ends it when its lease
// has run out. alive, if not nil, is called at a sign of life; its error ends the
// wait, and so does not being permitted to end it.
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
	w := s.Watcher(pid, inc)
	timer := time.NewTimer(0)
	defer timer.Stop()
	told := false // by the feed, that the incarnation is over
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-claim.Changed():
			entries, _ := claim.Take()
			for _, e := range entries {
				told = e.Rev > inc
			}
		case <-session.Changed():
			entries, synced := session.Take()
			for _, e := range entries {
				if w.See(e) && alive != nil {
					return alive()
				}
			}
			if synced && w.v.since.IsZero() {
				w.See(kv.Entry{Key: KeySession(pid), Seen: time.Now()})
			}
		case <-timer.C:
		}
		if told { // a person can publish on the feed: the record decides
			if over, err := s.IsOver(ctx, pid, inc); err == nil && over {
				return nil
			}
		}
		over, wait := w.Challenge(ctx)
		if over {
			return nil
		}
		if w.denied != nil {
			return w.denied
		}
		if told {
			wait = min(wait, retryChallenge)
		}
		timer.Reset(wait)
	}
}

package lease

import (
	"context"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// A waiter waits for a claim on behalf of one acquisition. It is for one goroutine.
type waiter struct {
	c     *Claim
	p     Policy
	claim *kv.Watch // once there is something to wait for
	told  bool      // by the feed, that there is a newer record than the one known
	proof *proof    // that is being sought
}

func (w *waiter) close() {
	w.unprove()
	if w.claim != nil {
		w.claim.Close()
	}
}

// A proof is sought by one goroutine, which watches one holder's process: whoever
// watches anew may find it dead, and proves nothing.
type proof struct {
	pid  string
	inc  uint64
	stop context.CancelFunc
	over chan struct{} // closed when the holder has ended by it
	done chan struct{} // closed when the goroutine has
}

// open reports whether there is a proof, or still may be.
func (p *proof) open() bool {
	select {
	case <-p.over:
		return true
	default:
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// prove has the process of the holder that r names watched, and of nobody else; r may
// name nobody. It returns what is closed when that holder has ended by proof.
func (w *waiter) prove(ctx context.Context, r ClaimRecord) (over <-chan struct{}) {
	if p := w.proof; p != nil && p.pid == r.PID && p.inc == r.Inc && p.open() {
		return p.over
	}
	w.unprove()
	if r.PID == "" {
		return nil
	}
	p := &proof{pid: r.PID, inc: r.Inc, over: make(chan struct{}), done: make(chan struct{})}
	ctx, p.stop = context.WithCancel(ctx)
	w.proof = p
	s := w.c.s
	go func() {
		defer close(p.done)
		if err := s.witness(ctx, p.pid, p.inc); err == nil {
			close(p.over)
		} else if ctx.Err() == nil {
			s.cfg.Logger.Debug("no proof to be had: waiting for the lease", "pid", p.pid, "err", err)
		}
	}()
	return p.over
}

// unprove stops the search for a proof.
func (w *waiter) unprove() {
	if w.proof != nil {
		w.proof.stop()
		<-w.proof.done
		w.proof = nil
	}
}

// watch makes sure that the claim is followed.
func (w *waiter) watch(ctx context.Context) (err error) {
	if w.claim == nil {
		w.claim, err = w.c.s.b.Watch(ctx, w.c.key)
	}
	return err
}

// newer takes what the watch has and, if that is newer than e, reads the record: a
// person can publish on the feed. If there is a newer one, it is returned.
func (w *waiter) newer(ctx context.Context, e kv.Entry) (kv.Entry, bool) {
	entries, _ := w.claim.Take()
	for _, n := range entries {
		w.told = n.Rev > e.Rev
	}
	if !w.told {
		return e, false
	}
	n, err := w.c.s.b.Get(ctx, w.c.key)
	if err != nil || n.Rev <= e.Rev {
		return e, false // tried again in a while
	}
	w.told = false
	return n, true
}

// outlive waits until the holder that e names is over, which it makes so when its
// lease has run out, unless that is for others to do; or until there is a newer
// record, which it returns.
func (w *waiter) outlive(ctx context.Context, e kv.Entry, r ClaimRecord) (over bool, _ kv.Entry, err error) {
	s := w.c.s
	if w.p.Free {
		over, err = s.IsOver(ctx, r.PID, r.Inc)
		if err == nil && !over {
			err = ErrTaken
		}
		return over, e, err
	}
	if err := w.watch(ctx); err != nil {
		return false, e, err
	}
	w.c.vacancy.Store(false)
	defer w.c.vacancy.Store(true)
	near, again := true, (<-chan struct{})(nil)
	if w.p.Near != nil {
		near, again = w.p.Near()
	}
	var proven <-chan struct{}
	if near && w.p.Proof {
		proven = w.prove(ctx, r)
	}
	ctx, cancel := context.WithCancel(ctx)
	result := make(chan error, 1) // capacity 1: the goroutine ends, read or not
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if near {
			result <- s.outlive(ctx, r.PID, r.Inc, nil)
		} else {
			result <- s.awaitEnd(ctx, r.PID, r.Inc)
		}
	})
	for {
		select {
		case err := <-result:
			return err == nil, e, err
		case <-proven:
			return true, e, nil
		case <-again:
			return false, e, nil
		case <-w.claim.Changed():
		case <-retry(w.told):
		}
		if n, ok := w.newer(ctx, e); ok {
			return false, n, nil
		}
	}
}

// giveWay leaves a claim that is free to whom it was given, or to those who come
// before us. It reports whether there is a newer record than e, which it returns. A
// record does not say how long it has been there, so whoever finds that the claim was
// given to another leaves that one its whole time.
func (w *waiter) giveWay(ctx context.Context, e kv.Entry, r ClaimRecord) (changed bool, _ kv.Entry, err error) {
	var wait time.Duration
	given := r.State == stateHandover && r.To != w.c.s.cfg.PID
	if given {
		wait = handoverWindow
	}
	if e.Value == nil && e.Rev > 0 { // a person removed it, perhaps from a holder that lives
		given, wait = true, patience(w.c.s.b.Longest())
	}
	if w.p.Delay != nil && r.To != w.c.s.cfg.PID {
		wait += w.p.Delay()
	}
	if wait <= 0 || w.p.Free && !given {
		return false, e, nil
	}
	if err := w.watch(ctx); err != nil {
		return false, e, err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, e, context.Cause(ctx)
		case <-timer.C:
			return false, e, nil
		case <-w.claim.Changed():
		case <-retry(w.told):
		}
		if n, ok := w.newer(ctx, e); ok {
			return true, n, nil
		}
	}
}

// awaitEnd returns when incarnation inc of pid is over, whoever makes it so.
func (s *Session) awaitEnd(ctx context.Context, pid string, inc uint64) error {
	w, err := s.b.Watch(ctx, KeyPID(pid))
	if err != nil {
		return err
	}
	defer w.Close()
	told := false // by the feed
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.Changed():
			entries, _ := w.Take()
			for _, e := range entries {
				told = e.Rev > inc
			}
		case <-retry(told):
		}
		if told { // a person can publish on the feed: the record decides
			if over, err := s.IsOver(ctx, pid, inc); err == nil && over {
				return nil
			}
		}
	}
}

// retry is ready after a while if there is something to try again.
func retry(again bool) <-chan time.Time {
	if !again {
		return nil
	}
	return time.After(retryChallenge)
}

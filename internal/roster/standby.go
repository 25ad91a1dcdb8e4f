package roster

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// A turnout is what a node knows of whether anybody coordinates.
type turnout struct {
	inc   uint64    // our incarnation
	alive time.Time // when a coordinator was last heard, or inc began
	tried bool      // whether inc has tried to take the claim if it is free
	late  float64   // which part of the spread of all members inc waits, from 0 to 1
}

// silence is how long no coordinator is heard before a member stands by that is not one of
// the few who do anyway: they had the time to take the claim of a coordinator that crashed
// and to be heard, and of a thousand not all come at once.
func (t turnout) silence(members int, lease time.Duration) time.Duration {
	spread := min(time.Duration(max(0, members-allStandBy))*5*time.Millisecond, beacon)
	every := often(members)
	return max(2*every, every+lease*11/10) + time.Duration(t.late*float64(spread))
}

// askAgain is how long a node that is not permitted to coordinate leaves it to the
// others: permissions may change while it runs.
const askAgain = time.Minute

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// candidate waits for its turn to coordinate, and coordinates, until ctx or the
// session ends.
func (r *Roster) candidate(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.cfg.Session.Leaving(), cancel)()
	for n := 0; ; {
		acquire, err := r.standBy(ctx)
		if err != nil {
			return
		}
		if err = r.turn(ctx, acquire); err == nil {
			n = 0
			continue
		}
		if errors.Is(err, kv.ErrPermission) {
			r.cfg.Logger.Info("not permitted to coordinate", "roster", r.cfg.Name, "err", err)
			wait(ctx, askAgain)
			continue
		}
		if ctx.Err() == nil && !errors.Is(err, lease.ErrLeft) { // which may be ahead of ctx
			r.cfg.Logger.Warn("not coordinating", "roster", r.cfg.Name, "err", err)
		}
		for range 1 << min(n, 5) { // up to about 7 s: a view that is not ours stays so
			kv.Pause(ctx, 3)
		}
		n++
	}
}

// An acquire is one of the claim's ways to be acquired.
type acquire func(context.Context, time.Duration) (*lease.Grant, error)

// standBy returns when this node should acquire the claim, and how; it fails when
// ctx ends.
//
// Those who wait for the claim are a few of the oldest members, or everyone when no
// coordinator is heard. A node that has just come takes the claim if it is free, and
// else gives the coordinator the time to take it up: of a thousand that come at
// once, all but a few would watch the claim in vain.
func (r *Roster) standBy(ctx context.Context) (acquire, error) {
	for {
		_, changed := r.view.Load()
		_, session := r.cfg.Session.State()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		near, wait := r.near()
		switch {
		case near:
			return r.claim.Acquire, nil
		case r.newcomer():
			return r.claim.AcquireFree, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-session:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// near reports whether this node is one of those that wait for the claim. If not,
// it is to be asked again after wait.
func (r *Roster) near() (near bool, wait time.Duration) {
	st, _ := r.cfg.Session.State()
	if st.Hold == nil {
		return false, beacon
	}
	v := r.view.Get()
	r.mu.Lock()
	if r.turnout.inc != st.Hold.Incarnation {
		r.turnout = turnout{inc: st.Hold.Incarnation, alive: time.Now(), late: rand.Float64()}
	}
	t := r.turnout
	r.mu.Unlock()
	me, _ := v.Find(r.cfg.Session.PID())
	member := me.Inc == t.inc
	limit := t.silence(len(v.Members), r.b.Longest())
	if !member {
		limit = r.cfg.Ceiling * 3 / 2
	}
	silence := time.Since(t.alive)
	stands := member && (len(v.Members) <= allStandBy || v.older(t.inc) < standbys)
	return stands || silence > limit, max(limit-silence, 0) + time.Millisecond
}

// older returns how many members but the coordinator were here before an incarnation, as
// far as standbys of them.
func (v *View) older(inc uint64) (n int) {
	for _, m := range v.Members {
		if m.PID != v.PID && m.Inc < inc {
			if n++; n == standbys {
				break
			}
		}
	}
	return n
}

// newcomer reports, once for every incarnation, that it has begun.
func (r *Roster) newcomer() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := !r.turnout.tried && r.turnout.inc != 0
	r.turnout.tried = true
	return first
}

// heardOne notes that there is a coordinator.
func (r *Roster) heardOne() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turnout.alive = time.Now()
}

// turn acquires the claim and coordinates under it.
func (r *Roster) turn(ctx context.Context, acquire acquire) error {
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan struct{})
	go func() { // ends the wait when others are nearer
		defer close(watched)
		ticker := time.NewTicker(beacon) // a coordinator may be heard that changes nothing
		defer ticker.Stop()
		for {
			_, changed := r.view.Load()
			select {
			case <-wait.Done():
				return
			case <-changed:
			case <-ticker.C:
			}
			if near, _ := r.near(); !near {
				cancel()
			}
		}
	}()
	g, err := acquire(wait, 0)
	cancel()
	<-watched
	switch {
	case err == nil:
	case errors.Is(err, lease.ErrTaken):
		return nil
	case ctx.Err() == nil && wait.Err() != nil && errors.Is(err, context.Canceled):
		return nil // others are nearer now
	default:
		return err
	}
	r.cfg.Logger.Info("coordinating", "roster", r.cfg.Name, "rev", g.Token)
	err = r.coordinate(ctx, g)
	release, done := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Session.Lease())
	defer done()
	return errors.Join(err, g.Release(release))
}

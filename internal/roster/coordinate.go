package roster

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/internal/beat"
	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/latest"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// coordinate writes views until the grant or until ends, or a view shows that another
// coordinator came after. nil means that one of the two ended.
func (r *Roster) coordinate(until context.Context, g *lease.Grant) error {
	ctx, cancel := context.WithCancel(g.Context())
	defer cancel()
	defer context.AfterFunc(until, cancel)()
	base, rev, err := r.base(ctx, g.Token)
	if err != nil {
		return ended(ctx, err)
	}
	var count latest.Value[*Count]
	failed := make(chan error, 1) // capacity 1: the census ends once
	go func() {
		failed <- r.cfg.Census(ctx, base, func(c Count) {
			c.Members = slices.Clone(c.Members)
			count.Store(&c)
		})
	}()
	defer func() { cancel(); <-failed; failed <- nil }()
	var last time.Time             // when the last view was written
	var suspects map[string]uint64 // announced last
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		c, changed := count.Load()
		var a announcement
		soon, due := false, false
		if c != nil {
			a, soon, due = base.step(c)
		}
		if due {
			if c.Plan == nil || !a.foreseen() {
				c = r.settle(ctx, base, &count, a, soon, time.Since(last) > r.cfg.Ceiling && !last.IsZero())
			}
			if c == nil {
				return ended(ctx, context.Cause(ctx))
			}
			if base, rev, err = r.publish(ctx, g, base, rev, c); err != nil {
				return ended(ctx, err)
			}
			last, suspects = time.Now(), c.Suspects
			timer.Reset(beaconIn(beacon))
			continue
		}
		if c != nil && !maps.Equal(c.Suspects, suspects) {
			suspects = c.Suspects
			r.suspect(base.Token, base.Epoch, suspects)
			r.announce(base.beacon(r.cfg.Session.PID(), suspects))
		}
		select {
		case <-changed:
		case <-timer.C:
			r.announce(base.beacon(r.cfg.Session.PID(), suspects))
			timer.Reset(beaconIn(often(len(base.Members))))
		case err := <-failed:
			failed <- nil
			return ended(ctx, err)
		case <-ctx.Done():
			return nil
		}
	}
}

// often is how often a coordinator of so many members is heard while nothing changes. Each
// beacon goes to all of them, so the server delivers at most 100 a second up to 2000.
func often(members int) time.Duration {
	return min(max(time.Duration(members)*beaconEach, beacon), beaconMost)
}

// beaconIn is how long to wait for the time of the next beacon, at most d: it is that of
// every roster, so that who follows several is woken once.
func beaconIn(d time.Duration) time.Duration { return beat.In(time.Now(), d, beacon) }

// ended: an error after the end of ctx is its consequence.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// settle waits for the end of the window that the step a opened, and returns the newest
// count. soon and calm shorten the window until the step is no longer a. Nil when ctx ends.
func (r *Roster) settle(ctx context.Context, base *View, count *latest.Value[*Count], a announcement, soon, calm bool) *Count {
	sign := time.NewTicker(r.cfg.Ceiling / 2) // those who come must not think that nobody is here
	defer sign.Stop()
	now := time.Now()
	w := window{quiet: r.cfg.Quiet, ceiling: r.cfg.Ceiling, opened: now, changed: now, soon: soon, calm: calm}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		c, changed := count.Load()
		w.wait(base, c)
		timer.Reset(time.Until(w.end()))
		select {
		case <-changed:
			if w.soon || w.calm { // who leaves is missed by its wish, and then by the fabric
				if b, _, _ := base.step(count.Get()); b.same(a) {
					continue
				}
				w.soon, w.calm = false, false
			}
			w.changed = time.Now()
		case <-sign.C:
			r.announce(base.beacon(r.cfg.Session.PID(), c.Suspects))
		case <-timer.C:
			return c
		case <-ctx.Done():
			return nil
		}
	}
}

// errSuperseded: a coordinator with a higher token has written a view.
var errSuperseded = errors.New("another coordinator came after")

// base reads the view to go on from.
func (r *Roster) base(ctx context.Context, token uint64) (*View, uint64, error) {
	for n := 0; ; n++ {
		e, err := r.b.Get(ctx, r.key)
		if err == nil {
			v, err := parseView(e)
			if err == nil && v.Token > token {
				err = errSuperseded
			}
			if err == nil && v.Epoch == 0 {
				// Removed by a person, or the bucket is new: the epochs go on, since
				// those who have a view take none of the same token that is older.
				v.Epoch = r.view.Get().Epoch
			}
			return v, e.Rev, err
		}
		if err := kv.Pause(ctx, n); err != nil {
			return nil, 0, err
		}
	}
}

// publish writes the view that follows base and announces it.
func (r *Roster) publish(ctx context.Context, g *lease.Grant, base *View, rev uint64, c *Count) (*View, uint64, error) {
	for {
		a, _, due := base.step(c)
		if !due {
			return base, rev, nil // it settled into nothing
		}
		a.Token, a.PID = g.Token, r.cfg.Session.PID()
		v := base.next(a)
		v.Nonce, v.last = nuid.Next(), a
		value, err := json.Marshal(v)
		if err != nil {
			return nil, 0, err
		}
		if !g.Valid() {
			return nil, 0, lease.ErrLost
		}
		said := r.meanwhile(ctx, base.beacon(r.cfg.Session.PID(), c.Suspects))
		got, err := r.b.Settle(ctx, r.key, rev, value, 0)
		said()
		if err == nil {
			r.cfg.Logger.Debug("view written", "roster", r.cfg.Name, "epoch", v.Epoch, "members", len(v.Members))
			r.advance(v)
			r.announce(a)
			return v, got, nil
		}
		if errors.Is(err, kv.ErrReplaced) || !errors.Is(err, kv.ErrRefused) {
			return nil, 0, err
		}
		// A late write of the coordinator before: go on from there.
		if base, rev, err = r.base(ctx, g.Token); err != nil {
			return nil, 0, err
		}
	}
}

// meanwhile announces a at each beacon until end is called: a write that takes long is no
// sign that nobody coordinates.
func (r *Roster) meanwhile(ctx context.Context, a announcement) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(beacon)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				r.announce(a)
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

// announce tells the followers. One that does not get it hears it at the next beacon, or
// reads then.
func (r *Roster) announce(a announcement) {
	r.heardOne()
	err := r.cfg.Signals.Signal(r.kind, a.encode())
	if err != nil { // too large, or disconnected: name the epoch only, now or later
		if err := r.cfg.Signals.Signal(r.kind, beaconOf(a.Epoch, a.Token, a.PID, nil).encode()); err != nil {
			r.cfg.Logger.Debug("view not announced", "roster", r.cfg.Name, "err", err)
		}
	}
}

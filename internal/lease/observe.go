package lease

import (
	"context"
	"errors"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// A Holder is who holds a claim. While nobody does, all but To is zero.
type Holder struct {
	PID      string
	Inc      uint64
	Term     uint64
	Token    uint64
	Since    time.Time
	Priority int
	// Suspected: the session was not seen renewed for longer than [Watcher]s take
	// for usual. Its lease may run out; it may also be renewed.
	Suspected bool
	// To is whom the last holder gave the claim to, until it is taken.
	To string
}

// Holder reads who holds the claim named key, without waiting. That is nobody in a
// bucket that does not exist, and if the holder was not heard for two leases, even
// if there is no process that would end it.
func (s *Session) Holder(ctx context.Context, key string) (Holder, error) {
	e, err := s.b.Get(ctx, key)
	if errors.Is(err, kv.ErrNoBucket) {
		return Holder{}, nil
	}
	if err != nil || e.Value == nil {
		return Holder{}, err
	}
	r, err := ParseClaim(e)
	if err != nil {
		return Holder{}, err
	}
	h := r.holder(e.Rev)
	alive, err := s.seems(ctx, h)
	if err != nil || !alive {
		return Holder{To: h.To}, err
	}
	return h, nil
}

// A Claimed is a claim that there is, and who holds it.
type Claimed struct {
	Key    string
	Holder Holder // the zero Holder if nobody seems to
	Term   uint64 // the last one
	// Foreign: the record is not the fabric's.
	Foreign bool
}

// Claims reads every claim that matches pattern, in no order. Each is as [Session.Holder]
// reads it, at some moment of the call.
func (s *Session) Claims(ctx context.Context, pattern string) ([]Claimed, error) {
	entries, err := s.b.List(ctx, pattern)
	if errors.Is(err, kv.ErrNoBucket) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	type life struct {
		pid string
		inc uint64
	}
	alive := map[life]bool{}
	all := make([]Claimed, 0, len(entries))
	for _, e := range entries {
		r, err := ParseClaim(e)
		if err != nil {
			all = append(all, Claimed{Key: e.Key, Foreign: true})
			continue
		}
		h := r.holder(e.Rev)
		l := life{h.PID, h.Inc}
		if _, known := alive[l]; !known {
			if alive[l], err = s.seems(ctx, h); err != nil {
				return nil, err
			}
		}
		if !alive[l] {
			h = Holder{To: h.To}
		}
		all = append(all, Claimed{Key: e.Key, Holder: h, Term: r.Term})
	}
	return all, nil
}

// seems reads whether h's incarnation is not over, and its session fresh.
func (s *Session) seems(ctx context.Context, h Holder) (bool, error) {
	if h.PID == "" {
		return false, nil
	}
	over, err := s.IsOver(ctx, h.PID, h.Inc)
	if err != nil || over {
		return false, err
	}
	now, err := s.b.Clock(ctx)
	if err != nil {
		return false, err
	}
	session, err := s.b.Get(ctx, KeySession(h.PID))
	return err == nil && Fresh(session, h.Inc, now), err
}

// holder returns whom r, stored at rev, names.
func (r ClaimRecord) holder(rev uint64) Holder {
	switch {
	case r.State == stateHandover:
		return Holder{To: r.To}
	case !r.Held():
		return Holder{}
	case r.Token != 0:
		rev = r.Token
	}
	return Holder{PID: r.PID, Inc: r.Inc, Term: r.Term, Token: rev, Since: r.Since, Priority: r.Priority}
}

// Fresh reports whether e is a session of the incarnation that may be alive, to judge
// by the server's clock. It is for showing: nothing is taken over on its word.
func Fresh(e kv.Entry, inc uint64, now time.Time) bool {
	r, err := ParseSession(e)
	return err == nil && r.Inc == inc && now.Sub(e.Stored) < 2*r.Lease()
}

// IsOver reads whether incarnation inc of pid is over.
func (s *Session) IsOver(ctx context.Context, pid string, inc uint64) (bool, error) {
	e, err := s.b.Get(ctx, KeyPID(pid))
	return e.Rev > inc, err
}

// Observe calls report with the holder of the claim named key, now and whenever it
// is another, suspected or no longer so, vacancy included, until ctx ends or report
// returns false. Holders that follow each other quickly may be passed over; the
// last never is.
func (s *Session) Observe(ctx context.Context, key string, report func(Holder) bool) error {
	o := &observer{s: s}
	var err error
	if o.claim, err = s.b.Watch(ctx, key); err != nil {
		return err
	}
	defer o.claim.Close()
	defer func() { o.follow(ctx, Holder{}) }()
	var told Holder
	for first := true; ; {
		synced, err := o.wait(ctx)
		if err != nil {
			return err
		}
		if synced && (first || o.now != told) {
			if !report(o.now) {
				return nil
			}
			first, told = false, o.now
		}
	}
}

// An observer knows who holds a claim. It is for one goroutine.
type observer struct {
	s     *Session
	claim *kv.Watch
	now   Holder

	pid, session *kv.Watch // of the holder; nil while there is none
	timer        *time.Timer
	heard        time.Time     // when the holder's session was last seen renewed
	lease        time.Duration // that it states
}

// follow makes h the holder, and watches it.
func (o *observer) follow(ctx context.Context, h Holder) (err error) {
	same := h.PID != "" && h.PID == o.now.PID && h.Inc == o.now.Inc
	h.Suspected = same && o.now.Suspected
	o.now = h
	if same {
		return nil
	}
	if o.pid != nil {
		o.pid.Close()
		o.session.Close()
		o.timer.Stop()
		o.pid, o.session, o.timer = nil, nil, nil
	}
	if h.PID == "" {
		return nil
	}
	pid, err := o.s.b.Watch(ctx, KeyPID(h.PID))
	if err != nil {
		return err
	}
	session, err := o.s.b.Watch(ctx, KeySession(h.PID))
	if err != nil {
		pid.Close()
		return err
	}
	o.pid, o.session = pid, session
	o.heard, o.lease = time.Now(), o.s.b.Longest()
	o.timer = time.NewTimer(suspect(o.lease))
	return nil
}

// wait takes one thing that happened. It reports whether the claim has been read.
func (o *observer) wait(ctx context.Context) (synced bool, err error) {
	var pid, session <-chan struct{}
	var silence <-chan time.Time
	if o.pid != nil {
		pid, session, silence = o.pid.Changed(), o.session.Changed(), o.timer.C
	}
	select {
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case <-o.claim.Changed():
		entries, synced := o.claim.Take()
		h := o.now
		for _, e := range entries {
			h = holderOf(e, h)
		}
		if len(entries) > 0 && h.PID != "" && (h.PID != o.now.PID || h.Inc != o.now.Inc) {
			if over, err := o.s.IsOver(ctx, h.PID, h.Inc); err == nil && over {
				h = Holder{}
			}
		}
		return synced, o.follow(ctx, h)
	case <-pid:
		entries, _ := o.pid.Take()
		for _, e := range entries {
			if e.Rev <= o.now.Inc {
				continue
			}
			// The record decides, not the feed; unless it cannot be read.
			if over, err := o.s.IsOver(ctx, o.now.PID, o.now.Inc); over || err != nil {
				return true, o.follow(ctx, Holder{})
			}
		}
	case <-session:
		entries, _ := o.session.Take()
		for _, e := range entries {
			o.hear(e)
		}
	case <-silence:
		o.listen(ctx)
	}
	return true, nil
}

// hear takes a record of the holder's session.
func (o *observer) hear(e kv.Entry) {
	r, err := ParseSession(e)
	if err != nil || r.Inc != o.now.Inc {
		return
	}
	o.heard, o.lease = e.Seen, r.Lease()
	o.now.Suspected = false
	o.timer.Reset(time.Until(o.heard.Add(suspect(o.lease))))
}

// listen is called when the holder was silent for too long: the feed may have
// missed a renewal, so one is looked for first.
func (o *observer) listen(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	e, err := o.s.b.Get(ctx, KeySession(o.now.PID))
	if r, parseErr := ParseSession(e); err == nil && parseErr == nil && r.Inc == o.now.Inc {
		if now, err := o.s.b.Clock(ctx); err == nil && now.Sub(e.Stored) < suspect(r.Lease()) {
			o.hear(e)
			return
		}
	}
	o.now.Suspected = true // until it is heard
}

// holderOf returns whom e names; a foreign record changes nothing.
func holderOf(e kv.Entry, before Holder) Holder {
	if e.Value == nil {
		return Holder{}
	}
	r, err := ParseClaim(e)
	if err != nil {
		return before
	}
	return r.holder(e.Rev)
}

package election

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/internal/latest"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// Times of standing by.
const (
	// turnEvery is how long each rank leaves a free claim to the one before it.
	turnEvery = 5 * time.Millisecond
	// spread is added for everyone who may come at the same time: of a thousand that
	// compete without a rank about ten come before the winner is known.
	spread = 125 * time.Microsecond
	// maxSpread bounds for how many it is added, whatever somebody says.
	maxSpread = 100_000
	// crowd is how many members a fabric has before its newcomers have to leave room.
	crowd = 32
	// askAgain is when a candidate tells the leader again that it stands, at first and
	// at most.
	askAgain, askSeldom = time.Second, 10 * time.Second
)

// A place is what a candidate knows of its rank. The zero place is nothing.
type place struct {
	token uint64 // of the term whose leader said it
	inc   uint64 // to which incarnation of this node
	rank  int
	of    int
}

// A stand is one node's candidacy in one election, while it campaigns or tries.
type stand struct {
	o    *office
	name string

	count int             // campaigns and tries; guarded by o.mu, as is the next
	early map[string]memo // who stands with this node before its term has begun here

	cfg    latest.Value[Config] // of the newest campaign; the zero Config: none yet
	holder latest.Value[lease.Holder]
	place  latest.Value[place]
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// stand begins a candidacy, or joins the one that is there, until leave is called.
func (o *office) stand(ctx context.Context, e *Election) (s *stand, leave func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s = o.stands[e.cfg.Name]
	if s == nil {
		s = &stand{o: o, name: e.cfg.Name, early: map[string]memo{}}
		ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
		o.stands[s.name] = s
		s.wg.Go(func() { s.run(ctx) })
	}
	s.count++
	return s, func() {
		o.mu.Lock()
		s.count--
		last := s.count == 0
		if last {
			delete(o.stands, s.name)
		}
		o.mu.Unlock()
		if last {
			s.cancel()
			s.wg.Wait()
		}
	}
}

// memo says that this node stands.
func (s *stand) memo() memo {
	cfg := s.cfg.Get()
	st, _ := s.o.host.Session.State()
	return memo{Op: opStand, Name: s.name, Inc: incarnation(st), Priority: cfg.Priority, Preempt: cfg.Preempt}
}

// incarnation returns the one that is held, or 0.
func incarnation(st lease.State) uint64 {
	if st.Hold == nil {
		return 0
	}
	return st.Hold.Incarnation
}

// run tells each leader that this node stands until it answers, and the last one
// that it no longer does. An answer may come from a term that is later than what is
// known here: only a new holder, another incarnation of this node, and time, are a
// reason to tell it again. A leader forgets who stood under an incarnation that is over.
func (s *stand) run(ctx context.Context) {
	var h lease.Holder
	var inc uint64 // the one that h is told of
	var again <-chan time.Time
	due, wait := false, askAgain
	for {
		holder, changed := s.holder.Load()
		at, answered := s.place.Load()
		st, session := s.o.host.Session.State()
		if now := incarnation(st); holder.Token != h.Token || now != 0 && now != inc {
			h, inc, due, wait = holder, now, true, askAgain
		}
		switch {
		case h.PID == "" || h.PID == s.o.me || at.token >= h.Token && at.inc == inc:
			again = nil
		case due:
			s.o.tell(h.PID, s.memo())
			again = time.After(wait)
			wait = min(2*wait, askSeldom)
		}
		due = false
		select {
		case <-ctx.Done():
			if h.PID != "" && h.PID != s.o.me {
				s.o.tell(h.PID, memo{Op: opWithdraw, Name: s.name})
			}
			return
		case <-changed:
		case <-answered:
		case <-session:
		case <-again:
			due = true
		}
	}
}

// ranked takes a rank, unless a later leader's is known.
func (s *stand) ranked(m memo) {
	s.place.Update(func(p place) (place, bool) { return place{m.Token, m.Inc, m.Rank, m.Of}, m.Token >= p.token })
}

// policy makes p the policy of a campaign of this candidacy under cfg, or of a try: that
// does not wait for a leader, so it tells none that it stands.
func (s *stand) policy(p lease.Policy, cfg Config) lease.Policy {
	p.Delay, p.Near = s.delay, s.near
	if !p.Free {
		s.cfg.Store(cfg)
		p.Seen = s.holder.Store
	}
	return p
}

// delay is how long this candidate leaves a free claim to those before it.
func (s *stand) delay() time.Duration {
	members := len(s.members())
	switch at := s.place.Get(); {
	case at.token == 0 && members > crowd:
		return rand.N(time.Duration(members) * spread)
	case at.token == 0 && s.holder.Get().PID == "":
		return 0
	case at.token == 0: // others may have a rank
		return standbys * turnEvery
	default:
		return at.turn()
	}
}

// turn is how long one leaves a free claim to those who have a lower rank.
func (p place) turn() time.Duration {
	if p.rank < standbys {
		return time.Duration(max(p.rank, 0)) * turnEvery
	}
	return standbys*turnEvery + rand.N(time.Duration(min(max(p.of, 1), maxSpread))*spread)
}

// near reports whether this candidate watches the leader itself. The others, who
// are many, leave that to the standbys and to the coordinator of the members.
func (s *stand) near() (bool, <-chan struct{}) {
	at, changed := s.place.Load()
	if at.token == 0 {
		return len(s.members()) <= crowd, changed
	}
	return at.rank < standbys, changed
}

func (s *stand) members() (pids []string) {
	v, _ := s.o.host.Members.View()
	for _, m := range v.Members {
		pids = append(pids, m.PID)
	}
	return pids
}

package balance

import (
	"context"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/latest"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// A strict is what a member needs besides in strict modes: its keeper, which is fed
// with views and with what became of the fences and the callbacks. It is the feeder's,
// but for what mu guards.
type strict struct {
	m    *member
	keep keeper

	forAck uint64          // the epoch to acknowledge, 0 if none is due,
	after  uint64          // once the callbacks are done with this state of the group
	shown  <-chan struct{} // closed when they have come further
	acking uint64          // the newest that is being acknowledged, or was
	said   latest.Value[ack]
	news   <-chan struct{} // closed when said has changed

	raised  chan map[int]uint64 // capacity 1: one set of fences is raised at a time
	raising bool
	still   slots // of those being raised, what has been granted all the time

	mu     sync.Mutex // guards the fields below
	hold   *lease.Hold
	usable slots // held, or taken and the work on it not stopped yet
	revs   map[int]uint64
}

// An ack is up to which epoch a wish that is stored acknowledges what was taken.
type ack struct{ inc, epoch uint64 }

func newStrict(m *member) *strict {
	return &strict{m: m, raised: make(chan map[int]uint64, 1), revs: map[int]uint64{}}
}

// begin starts anew: with a new incarnation, or after the lease was in doubt. Nothing on a
// nil s.
func (s *strict) begin(inc uint64) {
	if s == nil {
		return
	}
	id := identity{string(s.m.node.PID()), inc, s.m.ask.Stay} // Stay never changes
	acked := s.keep.acked
	if s.keep.id != id {
		acked = 0
		s.m.mu.Lock()
		s.m.acked = 0
		s.m.mu.Unlock()
	}
	s.keep, s.forAck, s.acking, s.still, s.news = keeper{id: id, acked: acked}, 0, 0, "", nil
	s.use("", nil)
}

// drop gives everything up: the lease is in doubt. Nothing on a nil s.
func (s *strict) drop() {
	if s == nil {
		return
	}
	s.keep.may, s.keep.held, s.keep.mark, s.still, s.forAck, s.acking, s.news = "", "", 0, "", 0, 0, nil
	s.use("", nil)
}

// use sets what may be written for.
func (s *strict) use(held slots, hold *lease.Hold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.usable, s.hold = held, hold
}

// deliver takes the newest view, and whatever has happened since the last call.
func (s *strict) deliver(v *roster.View, hold *lease.Hold) {
	m := s.m
	said, news := s.said.Load()
	if s.news = news; said.inc == s.keep.id.inc {
		s.keep.acknowledged(said.epoch)
	}
	self, ok := v.Find(s.keep.id.pid)
	if !ok || identityOf(self) != s.keep.id {
		if s.keep.epoch != 0 && v.Epoch > s.keep.epoch && !ok { // it forgot us: nothing is ours
			s.keep.may, s.keep.held, s.still = "", "", ""
			s.show(v, &roster.Member{}, false)
			m.repeat(hold)
		}
		s.forAck = 0
		if ok && self.Inc == s.keep.id.inc {
			m.repeat(hold) // it has a former membership of this incarnation, or a wish that is not ours
		}
		return // the view is older than we are
	}
	if self.Refused {
		m.group.end(ErrMismatch)
		return
	}
	s.keep.see(v)
	s.still = s.still.both(s.keep.may)
	s.mu.Lock()
	s.hold = hold
	s.mu.Unlock()
	s.show(v, self, false)
	acks := s.acknowledge(hold)
	m.mu.Lock()
	differs := self.Ask != m.ask
	m.mu.Unlock()
	if differs && !acks {
		m.repeat(hold)
	}
	s.raise(v, hold)
}

// show hands what is held to the group.
func (s *strict) show(v *roster.View, self *roster.Member, more bool) {
	pid := s.keep.id.pid
	d := delivery{share: shareOfView(pid, v), members: placesIn(pid, v), stands: empty(self) || s.m.cfg.Partitions > 0, more: more}
	if parseKind(v.Kind).parts {
		d.parts = partitionsOf(pid, s.m.cfg.Zone, v, s.keep.held)
	} else {
		mine := placedAt(pid, s.keep.held)
		mine.Self, mine.Incarnation, mine.Standing = true, self.Inc, standingOf(self)
		d.members = sync.OnceValue(func() []Placed {
			placed, _ := placements(pid, v)
			for i := range placed {
				if placed[i].Self {
					placed[i] = mine
				}
			}
			return placed
		})
		total := d.share.Total
		d.share = shareOf(s.keep.held)
		d.share.Total, d.share.Epoch = total, v.Epoch
	}
	s.m.group.accept(d)
}

// acknowledge has it written that what was taken has been given up, when it has. It
// reports whether the wish is being written for that.
func (s *strict) acknowledge(hold *lease.Hold) bool {
	epoch := s.keep.due()
	if epoch == 0 {
		s.forAck = 0
		return false
	}
	if s.forAck != epoch {
		s.forAck, s.after = epoch, s.m.group.state.Load().number
	}
	shown, changed := s.m.group.shown.Load()
	s.shown = changed
	if shown < s.after {
		return false
	}
	s.use(s.keep.held, hold) // no more writes for the others
	if s.acking != epoch {
		s.acking = epoch
		s.m.mu.Lock()
		s.m.acked = max(s.m.acked, epoch)
		s.m.mu.Unlock()
		s.m.repeat(hold)
	}
	return true
}

// wrote tells the feeder what a wish that is stored acknowledges, if that is news. Nothing
// on a nil s.
func (s *strict) wrote(inc, acked uint64) {
	if s == nil || acked == 0 {
		return
	}
	s.said.Update(func(old ack) (ack, bool) {
		said := ack{inc, acked}
		return said, said != old
	})
}

// written fires when more was acknowledged since the last view was delivered; never on a
// nil s.
func (s *strict) written() <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.news
}

// changed fires when the callbacks have come further; never on a nil s.
func (s *strict) changed() <-chan struct{} {
	if s == nil || s.forAck == 0 {
		return nil
	}
	return s.shown
}

// ackAgain is after how long what was acknowledged, and is not taken note of, is
// acknowledged again: an earlier wish may have landed later.
const ackAgain = 3 * time.Second

// overdue fires when the acknowledgement is to be written again; never on a nil s.
func (s *strict) overdue() <-chan time.Time {
	if s == nil || !s.keep.open() {
		return nil
	}
	return time.After(ackAgain)
}

// fences gives the fences that were raised; nothing on a nil s.
func (s *strict) fences() <-chan map[int]uint64 {
	if s == nil {
		return nil
	}
	return s.raised
}

// raise begins to raise the fences of what was granted.
func (s *strict) raise(v *roster.View, hold *lease.Hold) {
	wanted := s.keep.wanted()
	if wanted == "" || s.raising {
		return
	}
	s.raising, s.still = true, wanted
	id := s.keep.id
	s.m.wg.Go(func() {
		ctx, cancel := context.WithCancel(s.m.stop)
		defer cancel()
		defer context.AfterFunc(hold.Context(0), cancel)()
		revs := raiseAll(ctx, s.m.host.Session.Bucket(), s.m.cfg.fenceKey, wanted, id, v)
		if len(revs) < wanted.count() {
			kv.Pause(ctx, 3)
		}
		s.raised <- revs
	})
}

// took lets the member act on what is behind a fence of its own now.
func (s *strict) took(revs map[int]uint64, v *roster.View) {
	s.raising = false
	var spans []span
	for i := range revs {
		spans = append(spans, span{i, 1})
	}
	got := newSlots(spans).both(s.still)
	s.still = ""
	if got == "" {
		return
	}
	s.keep.fenced(got)
	s.mu.Lock()
	for i := range got.all() {
		s.revs[i] = revs[i]
	}
	s.usable = s.usable.and(got)
	s.mu.Unlock()
	if self, ok := v.Find(s.keep.id.pid); ok && identityOf(self) == s.keep.id && v.Epoch == s.keep.epoch {
		s.show(v, self, true)
	}
}

// valid reports whether the lease is held, by the clock.
func (s *strict) valid() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hold != nil && s.hold.Valid(0)
}

// token returns the revision of an index's fence, while the index may be written for.
func (s *strict) token(index int) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold == nil || !s.hold.Valid(0) || !s.usable.has(index) {
		return 0, ErrNotHeld
	}
	return s.revs[index], nil
}

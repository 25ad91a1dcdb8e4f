package fabric

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/internal/window"
)

// links are the ends of the links of a courier, and the keeper that asks those that
// hear nothing.
type links struct {
	c    *courier
	wake chan struct{} // capacity 1: a token means that some link's time may be near

	mu     sync.Mutex // guards the fields below
	out    map[PID]*outLink
	byName map[string]*outLink // those of streams as well
	in     map[string]*inLink
	past   pastLinks
	looked time.Time // when expire last did

	// streams wait to be accepted; when it is full, more are refused.
	streams chan *InStream

	tellMu sync.Mutex    // guards the field below
	tells  []*inLink     // whose senders are to be told their state
	told   chan struct{} // capacity 1: a token means that tells is not empty
}

func (s *links) init(c *courier) {
	s.c = c
	s.wake, s.told = make(chan struct{}, 1), make(chan struct{}, 1)
	s.streams = make(chan *InStream, maxWaitingStreams)
	s.out, s.byName, s.in = make(map[PID]*outLink), make(map[string]*outLink), make(map[string]*inLink)
}

func (s *links) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// named returns the link with a name to a process, or nil.
func (s *links) named(name string, to PID) *outLink {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.byName[name]; l != nil && l.d.pid == to {
		return l
	}
	return nil
}

func (s *links) all() []*outLink {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*outLink, 0, len(s.byName))
	for _, l := range s.byName {
		all = append(all, l)
	}
	return all
}

// keepEvery is how often the keeper looks, while any link waits for something.
const keepEvery = 50 * time.Millisecond

// keep asks receivers that are silent for their state, and ends links that lead
// nowhere any more.
func (s *links) keep() {
	timer := time.NewTimer(expireEvery)
	defer timer.Stop()
	for {
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.c.done:
			return
		}
		waiting := false
		for _, l := range s.all() {
			waiting = s.c.attend(l) || waiting
		}
		waiting = s.c.batcher.lapse(time.Now()) || waiting
		s.expire(time.Now())
		if waiting {
			timer.Reset(keepEvery)
		} else {
			timer.Reset(expireEvery)
		}
	}
}

// attend does what is due for l, and reports whether it waits for its receiver.
func (c *courier) attend(l *outLink) (waiting bool) {
	l.mu.Lock()
	q := &l.quiet
	now := time.Now()
	if l.err != nil || l.idle() {
		if open := l.err == nil && l.greeting != nil && l.begun; !open || now.Before(q.due) {
			l.mu.Unlock()
			return open
		}
		q.due = now.Add(streamProbe) // its reader shall know that there may be more
		l.probe()
		l.mu.Unlock()
		return true
	}
	bounced, lonely, reached := q.bounced, q.probes >= 2, l.reached()
	if !now.Before(q.due) {
		if q.probes == 0 {
			q.since = now
		}
		q.probes++
		q.bounced = false
		q.wait = min(2*q.wait, lastProbe)
		q.due = now.Add(q.wait)
		l.probe()
	}
	heard, silent := l.heard, q.probes > 0 && now.Sub(q.since) > quietLimit
	l.mu.Unlock()
	if !bounced && !lonely {
		return true
	}
	if err := c.verdict(life{c}, l.d.pid); err == ErrNoPeer || bounced && silent && !heard {
		if reached {
			err = fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
		}
		l.fail(err, false)
		return false
	}
	return true
}

// errBroken is what a flush finds whose marker was lost with its connection.
var errBroken = fmt.Errorf("%w: some of what was sent before the connection broke may be lost: %w", ErrUnknownOutcome, ErrDisconnected)

// reconnected is told that the connection is new.
func (c *courier) reconnected() {
	c.flushes.fail(c.cfg.pid, "", errBroken)
	c.batcher.unshelve()
	c.links.hurry()
}

// hurry has all links ask at once.
func (s *links) hurry() {
	for _, l := range s.all() {
		l.mu.Lock()
		if l.err == nil && !l.idle() {
			l.quiet = quiet{due: time.Now().Add(firstProbe), wait: firstProbe}
			l.probe()
		}
		l.mu.Unlock()
	}
	s.rouse()
}

// settled waits until the receivers of all links have acknowledged everything.
func (s *links) settled(ctx context.Context) error {
	for _, l := range s.all() {
		if err := l.settled(ctx); err != nil {
			return err
		}
	}
	return nil
}

// linkWord handles what a receiver says of a link of ours.
func (c *courier) linkWord(from PID, t tag, data []byte) bool {
	l := c.links.named(t.secret, from)
	if l == nil {
		return true // it is over
	}
	if t.kind == kindNoLink {
		if l.greeting != nil {
			l.fail(fmt.Errorf("%w: %s does not take it", ErrStreamAborted, from), false)
			return true
		}
		l.fail(fmt.Errorf("%w: %s has begun anew, or given up waiting", ErrUnknownOutcome, from), true)
		return true
	}
	st, ok := parseState(data)
	if ok {
		l.state(st)
	}
	return ok
}

// A state on the wire: flags, then four uvarints.
const (
	stateHold  = 1
	stateAgain = 2
)

func appendState(b []byte, st window.State) []byte {
	flags := byte(0)
	if st.Hold {
		flags |= stateHold
	}
	if st.Again {
		flags |= stateAgain
	}
	b = append(b, flags)
	for _, n := range [...]uint64{st.Cum, st.Grant.Seq, st.Grant.Bytes, st.Seen, st.Probe} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func parseState(b []byte) (st window.State, ok bool) {
	r := frameReader{b: b}
	flags := r.byte()
	st = window.State{Hold: flags&stateHold != 0, Again: flags&stateAgain != 0}
	for _, n := range [...]*uint64{&st.Cum, &st.Grant.Seq, &st.Grant.Bytes, &st.Seen, &st.Probe} {
		*n = r.uvarint()
	}
	return st, !r.bad && r.left() == 0 && flags&^(stateHold|stateAgain) == 0
}

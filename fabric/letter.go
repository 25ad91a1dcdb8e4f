package fabric

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// A letter is a durable message that was delivered to this process and is not settled.
// Its mailbox's mu guards it.
type letter struct {
	box     *mailbox
	seq     uint64 // in the stream
	key     string // of the message: its id, or its place if it has none
	attempt int
	stored  time.Time // by the server's clock
	state   letterState
	ack     string      // where the newest delivery is acknowledged
	until   time.Time   // when a failed one is forgotten, if it does not come again
	parcel  *deadParcel // of the last attempt
}

type letterState uint8

const (
	held   letterState = iota // in the inbox, or with the program
	failed                    // to be delivered again
	parked                    // on its way to the dead letters
)

// The words of JetStream's acknowledgements.
const (
	ackDone     = "+ACK"
	ackProgress = "+WPI"
)

// minPatience bounds how often the server is told of progress, if somebody made a mailbox
// that is in a hurry.
const minPatience = 300 * time.Millisecond

// ackAgain asks for another delivery after d.
func ackAgain(d time.Duration) string {
	return `-NAK {"delay":` + strconv.FormatInt(int64(d), 10) + "}"
}

// ack answers the server about a delivery. What it does not hear it asks again, by
// delivering again.
func (b *mailbox) ack(subject, word string) {
	if err := b.p.nc.Publish(subject, []byte(word)); err != nil {
		b.c.log.Debug("mail not acknowledged", "pid", b.c.cfg.pid, "err", err)
	}
}

// Attempt is how often a message of Mode [Durable] has been handed out with this time,
// as far as the server can tell: 1 for the first, more when it comes again. It is 0 for
// messages of other modes.
func (m *Message) Attempt() int {
	if a := m.asked(); a != nil {
		return a.attempt
	}
	return 0
}

func (m *Message) isMail() bool { a := m.asked(); return a != nil && a.kind == kindMail }

// settle does what [Message.Done] promises of a durable message.
func (m *Message) settle(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("done with mail from %s: %w", m.From, context.Cause(ctx))
	}
	a := m.asked()
	if !a.replied.CompareAndSwap(false, true) {
		return ErrReplied
	}
	l := a.letter
	b := l.box
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed: // it was given back
		return fmt.Errorf("done with mail from %s: %w", m.From, ErrClosed)
	case err == nil:
		b.settleLocked(l)
	case l.parcel != nil:
		b.parkLocked(l, err.Error())
	default:
		delay := min(b.cfg.Backoff<<min(l.attempt-1, 16), maxMailBackoff)
		b.release(l, failed)
		l.until = time.Now().Add(delay + 10*b.patience)
		b.ack(l.ack, ackAgain(delay))
	}
	return nil
}

// settleLocked needs b.mu.
func (b *mailbox) settleLocked(l *letter) {
	b.release(l, held)
	delete(b.letters, l.seq)
	b.ack(l.ack, ackDone)
}

// release notes that l is held no longer. It needs b.mu.
func (b *mailbox) release(l *letter, next letterState) {
	if l.state == held {
		b.held--
		select {
		case b.idle <- struct{}{}:
		default:
		}
	}
	l.state = next
}

// keep tells the server that what is held is still worked on, and forgets what failed
// and never came again: it was too old, or a person removed it.
func (b *mailbox) keep() {
	defer b.tick.Stop()
	for {
		select {
		case <-b.tick.C:
		case <-b.c.done:
			return
		}
		b.progress(time.Now())
	}
}

// progress is one round of keep. It holds b.mu as it publishes: after the word that a
// message failed, the server would take this one for a reason to wait longer.
func (b *mailbox) progress(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	for seq, l := range b.letters {
		switch {
		case l.state != failed:
			b.ack(l.ack, ackProgress)
		case now.After(l.until):
			delete(b.letters, seq)
			b.seen.remove(l.key)
		}
	}
}

// seen remembers the ids of the newest messages of this life, those that are held
// included: one that the sender had to repeat, after the server had forgotten it, is
// not handed out a second time.
type seen struct {
	now, before map[string]struct{}
}

// maxSeen is half of how many ids are remembered at most: some MiB of a mailbox that had
// so many, and half a minute of the fastest. What the server did not hear to be done comes
// again when it has a new leader, which takes 10 s, and its patience is over.
const maxSeen = 65_536

// add remembers id as the newest, and reports whether it was not known.
func (s *seen) add(id string) bool {
	if s.now == nil {
		s.now = make(map[string]struct{})
	}
	_, known := s.before[id]
	n := len(s.now)
	s.now[id] = struct{}{}
	known = known || len(s.now) == n
	if len(s.now) >= maxSeen { // only now: id had to be looked for in both
		s.before, s.now = s.now, s.before
		clear(s.now)
	}
	return !known
}

func (s *seen) remove(id string) {
	delete(s.now, id)
	delete(s.before, id)
}

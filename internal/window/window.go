// Package window is the bookkeeping of one link: a numbered stream of messages from
// a process to another, over a path that loses, repeats and, when a connection is
// replaced, reorders. It does no I/O and knows no time.
//
//	Sender                                      Receiver
//	Take: number it, if the grant allows        Accept: take it in, in order, once
//	  |-- messages, in the order of numbers ------>|
//	  |<-- State: accepted up to, grant, ... ------|
//	Heard: forget those, or send all again      Consume: the program took one
//	  |-- Probe, behind the messages ------------->| State at once
//
// Nothing is sent again for being late: only when the receiver shows that it is lost.
// It is if a later message, or a probe sent after it, has come and it has not. So a
// receiver that stands still is not flooded, and one that lives gets nothing twice
// on a path that keeps its order.
//
// Grants are absolute: the highest number, and the sum of the sizes, that may be
// sent in the life of the link. So a State that is late, or repeated, does no harm.
//
// Neither type is safe for concurrent use.
package window

// A Grant bounds what may be sent in the life of a link.
type Grant struct {
	Seq   uint64 // the highest number
	Bytes uint64 // the sum of the sizes
}

// A State is what a receiver tells its sender. Each replaces the ones before.
type State struct {
	Cum   uint64 // all up to this number are accepted
	Grant Grant
	Seen  uint64 // the highest number that came too early
	Probe uint64 // the newest probe that came
	Hold  bool   // what comes is refused for now: do not send it again
	Again bool   // what was refused may come now
}

// A Sender numbers messages and knows which of them are accepted.
type Sender struct {
	next  uint64 // the number that comes next
	acked uint64 // all up to this are accepted
	sent  uint64 // the sum of the sizes
	grant Grant

	probe  uint64  // the newest
	probes []probe // the newest that were not answered, nor sent before the last time of sending again
	resent uint64  // all up to this were sent before the last time of sending again
}

// A probe is one that was sent, and the number that came next then.
type probe struct{ number, next uint64 }

// maxProbes bounds the probes that are remembered: one whose answer takes longer than
// the sending of so many is as if it had not been sent.
const maxProbes = 16

// NewSender returns the sender of a new link, with what it may send unheard.
func NewSender(first Grant) *Sender { return &Sender{next: 1, grant: first} }

// Room reports whether the next message, with this size, may be sent.
func (s *Sender) Room(size uint64) bool {
	return s.next <= s.grant.Seq && s.sent+size <= s.grant.Bytes
}

// Take numbers a message that is sent now.
func (s *Sender) Take(size uint64) (seq uint64) {
	seq = s.next
	s.next++
	s.sent += size
	return seq
}

// Next returns the number that comes next.
func (s *Sender) Next() uint64 { return s.next }

// Sent returns the sum of the sizes of all that was sent.
func (s *Sender) Sent() uint64 { return s.sent }

// Acked returns the number up to which all are accepted.
func (s *Sender) Acked() uint64 { return s.acked }

// Idle reports whether all that was sent is accepted.
func (s *Sender) Idle() bool { return s.acked+1 == s.next }

// Probe returns the number of a probe that is sent now, and the number that the
// receiver must know to answer it: without a link whose first this is, it answers that
// it has none.
func (s *Sender) Probe() (number, base uint64) {
	s.probe++
	if len(s.probes) == maxProbes {
		s.probes = append(s.probes[:0], s.probes[1:]...)
	}
	s.probes = append(s.probes, probe{s.probe, s.next})
	return s.probe, s.acked + 1
}

// Heard takes in a state. It reports whether something that was not accepted now is,
// or may now be sent, and whether all that is not accepted is to be sent again.
func (s *Sender) Heard(st State) (progress, again bool) {
	if st.Cum >= s.next {
		return false, false // nobody accepts what was not sent
	}
	if st.Cum > s.acked {
		s.acked, progress = st.Cum, true
	}
	if st.Grant.Seq > s.grant.Seq || st.Grant.Bytes > s.grant.Bytes {
		s.grant.Seq = max(s.grant.Seq, st.Grant.Seq)
		s.grant.Bytes = max(s.grant.Bytes, st.Grant.Bytes)
		progress = true
	}
	for len(s.probes) > 0 && s.probes[0].number <= st.Probe {
		again = s.probes[0].number == st.Probe && s.acked+1 < s.probes[0].next
		s.probes = s.probes[1:]
	}
	// What came too early was sent before, or after, what has been sent again: only
	// after it, it shows that this is lost as well.
	again = again || st.Seen > s.acked+1 && st.Seen > s.resent || st.Again
	if again = again && !st.Hold && !s.Idle(); again {
		s.resent = s.next - 1
		s.probes = nil // they were sent before: their answers do not speak of what is sent now
	}
	return progress, again
}

// A Receiver accepts messages in order, each once.
type Receiver struct {
	limit Grant // how much may be under way and not consumed
	cum   uint64
	bytes uint64 // the sum of the sizes accepted

	consumed Grant // by the program
	told     Grant // in the last state

	seen, probe uint64
	hold, again bool
}

// NewReceiver returns the receiver of a new link, on which at most limit is under
// way, or accepted and not consumed.
func NewReceiver(limit Grant) *Receiver { return &Receiver{limit: limit, told: limit} }

// A Verdict is what becomes of a message that came.
type Verdict int

const (
	Accept Verdict = iota
	Repeated
	Early  // one before it has not come
	Beyond // the sender was not granted it
)

// Look says what is to become of a message. One with Accept is taken in, with
// Accepted, or refused, with Refuse, before the next is looked at.
func (r *Receiver) Look(seq, size uint64) Verdict {
	switch {
	case seq <= r.cum:
		return Repeated
	case seq > r.cum+1:
		r.seen = max(r.seen, seq)
		return Early
	case seq > r.told.Seq || r.bytes+size > r.told.Bytes:
		return Beyond
	}
	return Accept
}

// Accepted notes that the message that Look said to accept is taken in.
func (r *Receiver) Accepted(size uint64) {
	r.cum++
	r.bytes += size
	r.hold = false
}

// Refuse notes that the message that Look said to accept cannot be taken in for
// now: its sender waits until Resume.
func (r *Receiver) Refuse() { r.hold, r.again = true, false }

// Resume notes that what was refused may come again.
func (r *Receiver) Resume() {
	if r.hold {
		r.hold, r.again = false, true
	}
}

// Probed notes a probe. Its answer is the next State.
func (r *Receiver) Probed(number uint64) { r.probe = max(r.probe, number) }

// SetLimit changes how much may be under way. What was granted stays granted.
func (r *Receiver) SetLimit(limit Grant) { r.limit = limit }

// tellBytes is how much becomes free at most before the sender is told: the part of a large
// message, so that its sender does not stand still until a quarter of a large window is free.
const tellBytes = 256 << 10

// Consume notes that the program took messages, and reports whether the sender should
// be told: a quarter of the window has become free since, or tellBytes.
func (r *Receiver) Consume(messages, size uint64) bool {
	r.consumed.Seq += messages
	r.consumed.Bytes += size
	g := r.granted()
	return g.Seq-r.told.Seq >= r.limit.Seq/4 || g.Bytes-r.told.Bytes >= min(r.limit.Bytes/4, tellBytes)
}

func (r *Receiver) granted() Grant {
	return Grant{
		Seq:   max(r.told.Seq, r.consumed.Seq+r.limit.Seq),
		Bytes: max(r.told.Bytes, r.consumed.Bytes+r.limit.Bytes),
	}
}

// Cum returns the number up to which all are accepted.
func (r *Receiver) Cum() uint64 { return r.cum }

// Waiting returns how many messages are accepted and not consumed.
func (r *Receiver) Waiting() uint64 { return r.cum - r.consumed.Seq }

// State returns what the sender is told now.
func (r *Receiver) State() State {
	r.told = r.granted()
	st := State{Cum: r.cum, Grant: r.told, Seen: r.seen, Probe: r.probe, Hold: r.hold, Again: r.again}
	r.again = false
	return st
}

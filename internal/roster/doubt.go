package roster

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// A Sign speaks for the end of a process, and is less than proof of it. The zero Sign
// is none: the lease decides.
type Sign uint8

const (
	// Closed: its connection was closed from its side, as the kernel does when a
	// process ends.
	Closed Sign = iota + 1
	// Dropped: the server closed its connection, so that it may well be alive.
	Dropped
	// Unheard: the server knew nobody to take a message to it.
	Unheard
	signs
)

// A finding is what came of asking the server for a process.
type finding uint8

const (
	unclear  finding = iota // it could not be asked
	nobody                  // nobody takes what is sent to it
	somebody                // somebody does
)

// When a process is asked for after a sign, and once more after that: with Closed, 100 ms after the sign, in which one that lives may connect again.
var ladder = [signs]struct{ first, second time.Duration }{
	Closed:  {20 * time.Millisecond, 80 * time.Millisecond},
	Dropped: {20 * time.Millisecond, 2 * time.Second},
	Unheard: {0, 250 * time.Millisecond},
}

const (
	// brakeTime, brakeCount and brakeShare: when there are signs of more than so many,
	// or of that share of the members, within so long, the cause is not theirs.
	brakeTime  = time.Second
	brakeCount = 3
	brakeShare = 10
	// trustRefuted and trustWronged are for how long no sign counts of one that was
	// found, and of one that was held to have failed and was alive.
	trustRefuted = time.Second
	trustWronged = time.Minute
	// reconnecting is how long others may take to connect again after this node has.
	reconnecting = 2 * time.Second
)

// An incarnation is one life of a PID.
type incarnation struct {
	pid string
	inc uint64
}

// doubts decides which members a coordinator takes for failed before their lease has
// run out. It does no I/O and has no clock: it is told what was seen, and when, and
// says whom to ask for.
//
//	            sign                nobody               nobody
//	trusted ----------> in doubt ----------> suspected ----------> failed
//	   ^  ^                 |                |   |  ^                 |
//	   |  |     somebody,   |    somebody    |   |  | the brake,      | renewed
//	   |  +---- unclear ----+----------------+   |  | unclear         | and somebody,
//	   |                                         v  |                 | or twice
//	   +-------------------- renewed ------ left to its lease         |
//	   +--------------------------------------------------------------+
//
// Whoever is over by the records is forgotten, from every state.
type doubts struct {
	of map[incarnation]*doubt
	// recent are the times of the first signs of each, of the last second.
	recent map[incarnation]time.Time
	// shy: no sign counts before it.
	shy time.Time
}

type doubtState uint8

const (
	trusted doubtState = iota
	inDoubt
	suspected
	toLease
	failed
)

// A doubt is the state of one incarnation.
type doubt struct {
	state doubtState
	sign  Sign
	next  time.Time // when to ask; zero while that is under way, and if it is not due
	late  bool      // of failed: it has renewed once since
	again bool      // of in doubt: it was found, which may be out of date
	until time.Time // of trusted: no sign counts before it
}

func newDoubts() *doubts {
	return &doubts{of: map[incarnation]*doubt{}, recent: map[incarnation]time.Time{}}
}

// see takes a sign of an incarnation that is one of so many members.
func (d *doubts) see(now time.Time, id incarnation, s Sign, members int) {
	if s == 0 || s >= signs {
		return
	}
	if x := d.of[id]; x != nil && (x.state != trusted || now.Before(x.until)) {
		return
	}
	maps.DeleteFunc(d.recent, func(_ incarnation, at time.Time) bool { return now.Sub(at) > brakeTime })
	if _, known := d.recent[id]; !known {
		d.recent[id] = now
		if len(d.recent) > max(brakeCount, members/brakeShare) {
			d.hold(now, brakeTime)
		}
	}
	if now.Before(d.shy) {
		return
	}
	d.of[id] = &doubt{state: inDoubt, sign: s, next: now.Add(ladder[s].first)}
}

// hold lets no sign count for some time: whoever is in doubt is left to its lease.
func (d *doubts) hold(now time.Time, span time.Duration) {
	if until := now.Add(span); until.After(d.shy) {
		d.shy = until
	}
	for id, x := range d.of {
		switch x.state {
		case inDoubt:
			delete(d.of, id)
		case suspected:
			x.state, x.next = toLease, time.Time{}
		}
	}
}

// due returns whom to ask for now, in the order of the PIDs, and when somebody will
// be: the zero time if nobody.
func (d *doubts) due(now time.Time) (ask []incarnation, next time.Time) {
	for id, x := range d.of {
		switch {
		case x.state == trusted && !now.Before(x.until):
			delete(d.of, id)
		case x.next.IsZero():
		case !now.Before(x.next):
			x.next = time.Time{}
			ask = append(ask, id)
		case next.IsZero() || x.next.Before(next):
			next = x.next
		}
	}
	slices.SortFunc(ask, func(a, b incarnation) int { return strings.Compare(a.pid, b.pid) })
	return ask, next
}

// found takes what came of asking. It reports whether anybody is suspected, failed or
// cleared by it.
func (d *doubts) found(now time.Time, id incarnation, f finding) (changed bool) {
	x := d.of[id]
	if x == nil || x.state == trusted || x.state == toLease || !x.next.IsZero() {
		return false // it is over, or was held back, since
	}
	was := x.state
	switch {
	case was == failed && f == somebody:
		*x = doubt{until: now.Add(trustWronged)}
		return true
	case was == failed:
		return false
	case f == somebody && was == inDoubt && x.sign != Unheard && !x.again:
		// The server tells of the end of a connection before it forgets who it was.
		x.again, x.next = true, now.Add(ladder[x.sign].second)
	case f == somebody:
		*x = doubt{until: now.Add(trustRefuted)}
	case f == unclear && was == inDoubt:
		delete(d.of, id)
	case f == unclear:
		x.state = toLease
	case was == inDoubt:
		x.state, x.next = suspected, now.Add(ladder[x.sign].second)
		return true
	default:
		x.state = failed
	}
	return was == suspected && x.state != toLease
}

// renewed takes a sign of life, and reports whether it clears somebody. One renewal may
// have been under way when the process ended: of one that is being asked for the answer
// decides, and one that has failed is asked for again, or has to renew twice.
func (d *doubts) renewed(now time.Time, id incarnation) (changed bool) {
	x := d.of[id]
	switch {
	case x == nil:
	case x.state == toLease:
		*x = doubt{until: now.Add(trustRefuted)}
		return true
	case x.state == failed && x.late:
		*x = doubt{until: now.Add(trustWronged)}
		return true
	case x.state == failed:
		x.late, x.next = true, now
	}
	return false
}

// adopt takes over from the coordinator before that an incarnation had failed.
func (d *doubts) adopt(id incarnation, s Sign) { d.of[id] = &doubt{state: failed, sign: s} }

// forget is told that the records say who has the PID; inc is 0 if nobody.
func (d *doubts) forget(pid string, inc uint64) {
	for id := range d.of {
		if id.pid == pid && id.inc != inc {
			delete(d.of, id)
		}
	}
}

// failed returns by which sign an incarnation is held to have failed, 0 if it is not.
func (d *doubts) failed(id incarnation) Sign {
	if x := d.of[id]; x != nil && x.state == failed {
		return x.sign
	}
	return 0
}

// suspects returns who is suspected, or left to its lease after that.
func (d *doubts) suspects() map[string]uint64 {
	var all map[string]uint64
	for id, x := range d.of {
		if x.state == suspected || x.state == toLease {
			if all == nil {
				all = map[string]uint64{}
			}
			all[id.pid] = id.inc
		}
	}
	return all
}

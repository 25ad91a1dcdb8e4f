package balance

import (
	"slices"
	"time"

	"github.com/natsfabric/natsfabric/internal/roster"
	"github.com/natsfabric/natsfabric/internal/token"
)

// An identity is one membership: of one incarnation of a PID, which may join, leave
// and join again.
type identity struct {
	pid       string
	inc, stay uint64
}

func identityOf(m *roster.Member) identity { return identity{m.PID, m.Inc, m.Stay} }

// A poll is what a coordinator has to know, beside the members, to plan a view.
type poll struct {
	// acked: the member has given up all that a view up to this epoch took from it.
	acked map[identity]uint64
	// ended: the membership is over for good, and holds nothing any more. Only what
	// was verified is in it.
	ended map[identity]bool
	// failed tells of a member that is no longer there whether it failed rather than left,
	// and by which sign; kept are those whose next incarnation has their place.
	failed func(*roster.Member) (bool, roster.Sign)
	kept   map[identity]bool
	// up is for how long the coordinator has seen a membership without a break, bound
	// the longest probation.
	up    map[identity]time.Duration
	bound time.Duration
	// budget is how many partitions may move in one view; negative: any number.
	budget func(parts int) int
}

// plan fills in what each member of next is given. It is pure. before is the view that
// next follows; next has the members that are there now, with what they ask.
//
//	        target has it, nobody else has or is giving up
//	nobody ------------------------------------------------> Slots of a member
//	  ^                                                          |
//	  |  the member said so (acked >= Mark),                     | target does not
//	  |  or is over (ended)                                      | have it
//	  +----------------------- Going of the member <-------------+
//	                            (strict kinds only)
func (p poll) plan(before, next *roster.View) (soon bool) {
	next.Kind = p.commonKind(before, next.Members)
	p.mark(next)
	p.admit(before, next)
	k := parseKind(next.Kind)
	if k == (kind{}) {
		return false
	}
	if before.Kind == next.Kind { // else what they had is of another sort, and nobody's
		p.inherit(before, next, k)
	}
	order := token.Order(func(yield func(string) bool) {
		for _, m := range next.Members {
			if !yield(m.PID) {
				return
			}
		}
	})
	slices.SortFunc(next.Members, func(a, b *roster.Member) int { return order(a.PID, b.PID) })
	next.Units = p.units(before, next, k)
	target, units := p.target(next, k)
	switch k.mode {
	case StrictIndex:
		p.hand(next, k, target, units)
	case StrictEpoch:
		p.stopAndGo(before, next, target, units)
	default:
		for i, m := range next.Members {
			m.Slots, m.Going, m.Mark = string(target[i]), "", 0
		}
		next.Units = units
	}
	return k.strict() && slices.ContainsFunc(before.Members, func(m *roster.Member) bool { return m.Going != "" })
}

// commonKind returns the group's kind: what it was, as long as a member agrees, or may
// hold something of a strict kind; else that of the member that has been there for the
// longest time. Those who only watch have no say while there is anybody else.
func (p poll) commonKind(before *roster.View, members []*roster.Member) string {
	for _, m := range before.Members {
		if parseKind(before.Kind).strict() && (m.Slots != "" || m.Going != "") && !p.ended[identityOf(m)] {
			return before.Kind
		}
	}
	oldest := -1
	members = voters(members)
	for i, m := range members {
		if m.Kind == before.Kind && before.Epoch > 0 {
			return before.Kind
		}
		if oldest < 0 || m.Inc < members[oldest].Inc {
			oldest = i
		}
	}
	if oldest < 0 {
		return before.Kind
	}
	return members[oldest].Kind
}

// voters returns those who have a say in how the group divides its work.
func voters(members []*roster.Member) []*roster.Member {
	active := slices.DeleteFunc(slices.Clone(members), func(m *roster.Member) bool { return m.Passive })
	if len(active) > 0 {
		return active
	}
	return members
}

// mark refuses those who disagree with the group's kind, unless they only watch.
func (p poll) mark(next *roster.View) {
	for _, m := range next.Members {
		if m.Kind != next.Kind && !m.Passive {
			m.Refused = true
		}
	}
}

// inherit gives each member what it had. In strict kinds, whoever has gone and is not
// known to be over stays in the view with what it may hold still.
func (p poll) inherit(before, next *roster.View, k kind) {
	here := make(map[string]int, len(next.Members))
	for i, m := range next.Members {
		here[m.PID] = i
	}
	for _, old := range before.Members {
		i, ok := here[old.PID]
		same := ok && identityOf(next.Members[i]) == identityOf(old)
		if k.strict() && !same && !p.ended[identityOf(old)] {
			if old.Slots == "" && old.Going == "" {
				continue
			}
			if ok { // its successor has to wait, for what it is going to inherit
				*next.Members[i] = *old
			} else {
				m := *old
				m.Ask = roster.Ask{Idle: true, Kind: next.Kind, Stay: old.Stay, Zone: old.Zone}
				next.Members = append(next.Members, &m)
			}
			continue
		}
		if !ok {
			continue
		}
		m := next.Members[i]
		if k.strict() && same && old.Slots+old.Going != "" { // it stays where it has something, whatever a record says
			m.Zone = old.Zone
		}
		if k.zone(m) != k.zone(old) {
			continue
		}
		m.Slots, m.Going, m.Mark = old.Slots, old.Going, old.Mark
		// In StrictEpoch it stays noted until nobody has anything: they are to have the same
		// again.
		if !k.strict() || !same || k.mode != StrictEpoch && p.given(old) {
			m.Going, m.Mark = "", 0
		}
	}
}

// given reports whether m has given up what it was to.
func (p poll) given(m *roster.Member) bool {
	return p.ended[identityOf(m)] || p.acked[identityOf(m)] >= m.Mark
}

// units returns the number of partitions: once there is one it only doubles, when a
// member asks for it. A number that no group can have counts as none, wherever it is from.
func (p poll) units(before, next *roster.View, k kind) int {
	if !k.parts {
		return before.Units
	}
	units := before.Units
	if !validParts(units) || before.Kind != next.Kind || !slices.ContainsFunc(before.Members, func(m *roster.Member) bool { return !m.Passive && !m.Refused }) {
		units = 0 // or nobody was there: a new beginning
	}
	voters := voters(next.Members)
	for _, m := range voters {
		if units == 0 && m.Kind == next.Kind && validParts(m.Parts) {
			units = m.Parts
		}
	}
	for _, m := range voters {
		if m.Kind != next.Kind || m.Parts <= units || !validParts(m.Parts) || units <= 0 || m.Parts%units != 0 {
			continue
		}
		factor := m.Parts / units
		if factor&(factor-1) != 0 {
			continue
		}
		for _, o := range next.Members {
			o.Slots = string(slots(o.Slots).double(units, factor))
			o.Going = string(slots(o.Going).double(units, factor))
		}
		units = m.Parts
	}
	return units
}

func validParts(n int) bool { return n >= 1 && n <= MaxPartitions }

// target returns what each member should have in the end, and of how many.
func (p poll) target(next *roster.View, k kind) (given []slots, units int) {
	hs := make([]holder, len(next.Members))
	for i, m := range next.Members {
		n := wantOf(m).granted()
		hs[i] = holder{pid: m.PID, workers: n, weight: n * min(max(m.Weight, 1), MaxWeight), zone: m.Zone, has: slots(m.Slots)}
		if k.mode == StrictEpoch { // before it paused
			hs[i].has = hs[i].has.and(slots(m.Going))
		}
	}
	switch {
	case k.parts:
		budget := -1
		if p.budget != nil && k.mode != StrictEpoch { // which stops everyone for each view
			budget = p.budget(next.Units)
		}
		return assignZones(next.Members, k, hs, next.Units, budget), next.Units
	case k.sticky:
		return assignSticky(hs)
	}
	given = make([]slots, len(hs))
	for i, h := range hs {
		if h.workers > 0 && h.workers <= MaxTotal-units {
			given[i] = newSlots([]span{{units, h.workers}})
			units += h.workers
		}
	}
	return given, units
}

// hand takes from each what it should not have, and gives what nobody has any more.
func (p poll) hand(next *roster.View, k kind, target []slots, units int) {
	next.Units = units
	for i, m := range next.Members {
		p.take(m, slots(m.Slots).without(target[i]), next.Epoch)
	}
	taken := map[string][]span{} // by anybody, still
	for _, m := range next.Members {
		z := k.zone(m)
		taken[z] = append(append(taken[z], slots(m.Slots).spans()...), slots(m.Going).spans()...)
	}
	busy := map[string]slots{}
	for z, spans := range taken {
		busy[z] = newSlots(spans)
	}
	for i, m := range next.Members {
		m.Slots = string(slots(m.Slots).and(target[i].without(busy[k.zone(m)])))
	}
}

// take takes lost from m; it stays m's until m has given it up, unless it is over.
func (p poll) take(m *roster.Member, lost slots, epoch uint64) {
	if lost == "" {
		return
	}
	m.Slots = string(slots(m.Slots).without(lost))
	if p.ended[identityOf(m)] {
		return
	}
	m.Going, m.Mark = string(slots(m.Going).and(lost)), epoch
}

// stopAndGo takes everything from everyone when anything changes, and gives all of the
// new places at once when nobody has anything any more. What each had stands in Going
// until then, so that no more moves than if nobody had paused.
func (p poll) stopAndGo(before, next *roster.View, target []slots, units int) {
	same := units == before.Units
	idle := true
	for i, m := range next.Members {
		same = same && slots(m.Slots) == target[i]
		idle = idle && m.Slots == "" && p.given(m)
	}
	switch {
	case same && !idle:
	case idle:
		next.Units = units
		for i, m := range next.Members {
			m.Slots, m.Going, m.Mark = string(target[i]), "", 0
		}
	default:
		for _, m := range next.Members {
			p.take(m, slots(m.Slots), next.Epoch)
		}
	}
}

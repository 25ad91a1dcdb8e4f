package balance

import (
	"slices"
	"strings"
	"sync"

	"github.com/natsfabric/natsfabric/internal/roster"
)

// A Layout says how the indices lie.
type Layout int

const (
	// Contiguous gives each member one range of indices, in the order of the PIDs. It
	// is what libcluster does, and the default. A member that comes or goes moves the
	// indices of all after it.
	Contiguous Layout = iota
	// Sticky moves as few indices as can be: a join none, a leave only those at or
	// above the new total, which fill the gaps. A member's indices are a set, not a
	// range: read them with [Share.Indices] and [Share.Has].
	Sticky
)

// A Mode says what is guaranteed while the indices move.
type Mode int

const (
	// Default: members follow a new view each as soon as they see it. For moments
	// two of them may act on one index.
	Default Mode = iota
	// StrictIndex: an index, or partition, is never held by two members at once. It
	// is taken from one, who stops (OnRevoke, OnChange) and says so, or whose lease
	// has run out, before it is given to another. Members whose indices stay go on
	// without a pause. Total may differ between members for moments.
	StrictIndex
	// StrictEpoch: in addition, no two members act on different totals or views. For
	// each change all members give up everything, and go on when all of them have: a
	// change costs everyone the time of the slowest member, or a lease if one has
	// died.
	StrictEpoch
)

// A kind is how a group divides its work: what all of its members must agree on. Its
// text stands in the view. The zero kind is libcluster's.
type kind struct {
	sticky, parts bool
	zoned         bool // of parts: all of them in each zone
	mode          Mode
}

func (k kind) String() string {
	var words []string
	switch {
	case k.parts && k.zoned:
		words = append(words, "zones")
	case k.parts:
		words = append(words, "partitions")
	case k.sticky:
		words = append(words, "sticky")
	}
	switch k.mode {
	case StrictIndex:
		words = append(words, "strict")
	case StrictEpoch:
		words = append(words, "epoch")
	}
	return strings.Join(words, "-")
}

// parseKind is the reverse of String. What is not a kind is the zero one.
func parseKind(s string) kind {
	for _, k := range kinds {
		if k.String() == s {
			return k
		}
	}
	return kind{}
}

// kinds are all there are.
var kinds = func() (all []kind) {
	for _, mode := range []Mode{Default, StrictIndex, StrictEpoch} {
		all = append(all, kind{mode: mode}, kind{sticky: true, mode: mode}, kind{parts: true, mode: mode}, kind{parts: true, zoned: true, mode: mode})
	}
	return all
}()

// granted reports whether the indices of a view of this kind are those that it says
// were given, and not those that follow from its members.
func (k kind) granted() bool { return k.sticky || !k.parts && k.strict() }

func (k kind) strict() bool { return k.mode != Default }

// zone returns the zone in which m has its own indices or partitions: two members of
// different ones may have the same.
func (k kind) zone(m *roster.Member) string {
	if k.zoned {
		return m.Zone
	}
	return ""
}

// shareOfView returns the share of the member self, as shareIn does of its placements: a
// thousand members need that of each view, and seldom more.
func shareOfView(self string, v *roster.View) Share {
	s := Share{First: -1, Epoch: v.Epoch}
	if parseKind(v.Kind).granted() {
		m, _ := v.Find(self)
		p := placedAt(self, slots(m.Slots))
		s.First, s.Workers, s.slots, s.Total = p.First, p.Workers, p.slots, v.Units
		return s
	}
	for _, m := range v.Members { // sorted by PID already
		first, workers := wantOf(m).after(&s.Total)
		if m.PID == self {
			s.First, s.Workers = first, workers
		}
	}
	return s
}

// shareAfter is shareOfView of v, where was is that of the view before, if there was one. It
// looks at what differs only, unless shares are granted: a thousand members that look at a
// thousand each are half of what a change costs.
func shareAfter(was Share, before *roster.View, self string, v *roster.View) Share {
	if before == nil || parseKind(before.Kind).granted() || parseKind(v.Kind).granted() {
		return shareOfView(self, v)
	}
	first, olds, news := roster.Differing(before, v)
	came, went := 0, 0
	for _, m := range olds {
		went += wantOf(m).granted()
		if m.PID == self {
			return shareOfView(self, v)
		}
	}
	for _, m := range news {
		came += wantOf(m).granted()
		if m.PID == self {
			return shareOfView(self, v)
		}
	}
	if was.Total+came > MaxTotal-MaxWorkers { // somebody may not get all, or any
		return shareOfView(self, v)
	}
	s := Share{First: was.First, Workers: was.Workers, Total: was.Total + came - went, Epoch: v.Epoch}
	if m, _ := v.Find(self); s.First >= 0 && !slices.Contains(v.Members[:first], m) {
		s.First += came - went
	}
	return s
}

// placesIn returns what tells everyone's place in the view, when it is asked.
func placesIn(self string, v *roster.View) func() []Placed {
	return sync.OnceValue(func() []Placed {
		placed, _ := placements(self, v)
		return placed
	})
}

// placements returns everyone's place in the view, and the total.
func placements(self string, v *roster.View) (placed []Placed, total int) {
	if !parseKind(v.Kind).granted() {
		placed, total = assign(self, wantsOf(v))
	} else {
		placed, total = make([]Placed, len(v.Members)), v.Units
		for i, m := range v.Members { // sorted by PID already
			placed[i] = placedAt(m.PID, slots(m.Slots))
			placed[i].Self = m.PID == self
		}
	}
	for i := range placed {
		m := v.Members[i]
		placed[i].Incarnation, placed[i].Standing = m.Inc, standingOf(m)
	}
	return placed, total
}

// wantsOf returns what the members of a view ask for, as far as they get it.
func wantsOf(v *roster.View) []want {
	wants := make([]want, len(v.Members))
	for i, m := range v.Members {
		wants[i] = wantOf(m)
	}
	return wants
}

// wantOf returns what one member asks for, as far as it gets it.
func wantOf(m *roster.Member) want {
	return want{m.PID, m.Workers, m.Passive || m.Idle || m.Refused || m.Evicted || m.Probation}
}

package roster

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/token"
)

// A Member is one line of a view.
type Member struct {
	PID   string            `json:"pid"`
	Inc   uint64            `json:"inc"`
	Host  string            `json:"host,omitempty"`
	Since time.Time         `json:"since,omitzero"`
	Meta  map[string]string `json:"meta,omitempty"`
	// Of a balance group: what the member asks for, and what it was given.
	Ask
	Given
}

// An Ask is what a member asks of its balance group. Its JSON is part of a wish as
// well.
type Ask struct {
	Workers int    `json:"workers,omitempty"` // indices
	Passive bool   `json:"passive,omitempty"` // none, ever
	Idle    bool   `json:"idle,omitempty"`    // none for now
	Weight  int    `json:"weight,omitempty"`  // of a worker, for partitions; 0 means 1
	Zone    string `json:"zone,omitempty"`
	// Kind and Parts are how it thinks that the group divides its work.
	Kind  string `json:"kind,omitempty"`
	Parts int    `json:"parts,omitempty"`
	// Stay tells the memberships of one incarnation apart.
	Stay uint64 `json:"stay,omitempty"`
}

// A Given is what the coordinator of a balance group gave a member, where that does
// not follow from the members alone.
type Given struct {
	// Slots are the indices or partitions that the member has: "0-3,7".
	Slots string `json:"slots,omitempty"`
	// Going are those that it has to give up, since the view of epoch Mark. They are
	// nobody's until it said that it did, or is over.
	Going string `json:"going,omitempty"`
	Mark  uint64 `json:"mark,omitempty"`
	// Away: the incarnation is over, and its place is kept for the next.
	Away bool `json:"away,omitempty"`
	// Refused: it thinks of another Kind than the group's, and was given nothing.
	Refused bool `json:"refused,omitempty"`
	// Evicted: a person wants it to have nothing.
	Evicted bool `json:"evicted,omitempty"`
	// Probation: it is given nothing yet, because of its Strikes: how often in a row the PID
	// failed.
	Probation bool `json:"probation,omitempty"`
	Strikes   int  `json:"strikes,omitempty"`
}

// String is what %+v says of a member, for those who print a view.
func (m *Member) String() string { return fmt.Sprintf("%+v", *m) }

func (m *Member) equal(o *Member) bool {
	return m.PID == o.PID && m.Inc == o.Inc && m.Ask == o.Ask && m.Given == o.Given && maps.Equal(m.Meta, o.Meta)
}

// A Departure is a member that is no longer in the view, and why.
type Departure struct {
	PID    string `json:"pid"`
	Inc    uint64 `json:"inc"`
	Failed bool   `json:"failed,omitempty"`
	// By is the sign by which it was held to have failed before its lease ran out.
	By Sign `json:"by,omitempty"`
	// Strikes are those of the PID by then, this end among them.
	Strikes int `json:"strikes,omitempty"`
}

// keepGone is how many departures a view remembers, for followers that missed
// the announcement.
const keepGone = 128

// maxMembers is how many bytes of a view its members may take; the rest is for the
// departures and the view's own fields.
const maxMembers = kv.MaxRecord - 64<<10

// size is how many bytes of a view m takes.
func (m *Member) size() int {
	line, _ := json.Marshal(m) // of strings, numbers and times
	return len(line) + 1
}

// Full reports whether another member as large as the largest may not fit.
func (v *View) Full() bool {
	total, largest := 0, 0
	for _, m := range v.Members {
		size := m.size()
		total, largest = total+size, max(largest, size)
	}
	return total+largest > maxMembers
}

// A View is one numbered snapshot. It is not modified once it is shared, and neither are
// its members, which the views before and after have as well: of a thousand, a step
// changes few.
type View struct {
	Key   string `json:"key"`
	Epoch uint64 `json:"epoch"`
	Token uint64 `json:"token"`
	PID   string `json:"pid"` // the coordinator
	// Kind and Units are of a balance group: how it divides, and into how many.
	Kind    string      `json:"kind,omitempty"`
	Units   int         `json:"units,omitempty"`
	Members []*Member   `json:"members"`
	Gone    []Departure `json:"gone,omitempty"`
	Nonce   string      `json:"nonce"`
	// Suspects are the members of which the coordinator last announced that it has
	// signs of their end, with their incarnations. It is no part of the snapshot.
	Suspects map[string]uint64 `json:"-"`

	// sifted: members are left out, because they are not here any more and there is no
	// coordinator that would leave them out.
	sifted bool
	// words is one more than how many of the PIDs are no numbers, which decides how they
	// are sorted; 0 if they were not counted, nor seen to be sorted.
	words int
	// last is the step that led to the view, if this node has written it.
	last announcement
}

// absent is the member that was not found.
var absent Member

// Find returns the member with the PID; one with Inc 0 if there is none.
func (v *View) Find(pid string) (m *Member, ok bool) {
	if v.words > 0 {
		if i, ok := find(v.Members, pid, token.OrderOf(v.words == 1)); ok {
			return v.Members[i], true
		}
		return &absent, false
	}
	for _, m := range v.Members {
		if m.PID == pid {
			return m, true
		}
	}
	return &absent, false
}

func find(members []*Member, pid string, order func(a, b string) int) (int, bool) {
	return slices.BinarySearchFunc(members, pid, func(m *Member, pid string) int { return order(m.PID, pid) })
}

// count counts the PIDs that are no numbers, and sorts.
func (v *View) count() {
	v.words = 1
	for _, m := range v.Members {
		v.words += word(m.PID)
	}
	v.sort()
}

func (v *View) sort() {
	order := token.OrderOf(v.words == 1)
	slices.SortStableFunc(v.Members, func(a, b *Member) int { return order(a.PID, b.PID) })
}

// word is 1 if the PID is no number.
func word(pid string) int {
	if token.IsNumber(pid) {
		return 0
	}
	return 1
}

// Ended returns how the member departed. One whose departure is forgotten has failed.
func (v *View) Ended(pid string, inc uint64) Departure {
	for _, d := range slices.Backward(v.Gone) {
		if d.PID == pid && d.Inc == inc {
			return d
		}
	}
	return Departure{PID: pid, Inc: inc, Failed: true}
}

// An announcement is the step from one view to the next, or with Prev == Epoch only the
// name of the current one. Its form on the wire is wire.go's.
type announcement struct {
	Epoch, Token uint64
	Prev, After  uint64 // epoch and token of the view before
	PID          string // the coordinator
	Kind         string
	Units        int
	Set          []*Member
	Gone         []Departure
	Suspects     map[string]uint64
}

// beaconOf names a view.
func beaconOf(epoch, token uint64, pid string, suspects map[string]uint64) announcement {
	return announcement{Epoch: epoch, Prev: epoch, After: token, Token: token, PID: pid, Suspects: suspects}
}

// repeatable is up to how many bytes a step is announced again: every member gets it with
// every beacon.
const repeatable = 8 << 10

// beacon is what pid, its coordinator, says of the view while nothing changes: the step
// that led to it once more, for those who have missed that one, if it is not too large,
// and else its name.
func (v *View) beacon(pid string, suspects map[string]uint64) announcement {
	a := v.last
	a.Suspects = suspects
	if a.Epoch == 0 || len(a.encode()) > repeatable {
		return beaconOf(v.Epoch, v.Token, pid, suspects)
	}
	return a
}

// same reports whether two steps from one view lead to the same, as far as that is quick
// to see.
func (a announcement) same(b announcement) bool {
	return a.Kind == b.Kind && a.Units == b.Units && slices.Equal(a.Gone, b.Gone) && slices.EqualFunc(a.Set, b.Set, (*Member).equal)
}

// foreseen reports whether all that the step does is to go on without members that
// failed by evidence. A roster that follows the fabric's members, as every one with a
// plan does, need not wait for more of them: they have been asked for for a tenth of a
// second, and the view of the members has waited for those of the same moment.
func (a announcement) foreseen() bool {
	return len(a.Set) == 0 && len(a.Gone) > 0 && !slices.ContainsFunc(a.Gone, func(d Departure) bool { return d.By == 0 })
}

// step returns the step from v to the view that c leads to, and whether it is one.
// soon: it only goes on with what an earlier view began.
func (v *View) step(c *Count) (a announcement, soon, changed bool) {
	n := View{Key: v.Key, Epoch: v.Epoch + 1, Kind: v.Kind, Units: v.Units, Members: c.Members}
	if c.Plan != nil {
		n.Members = copied(n.Members)
		soon = c.Plan(v, &n)
	}
	a = announcement{Epoch: n.Epoch, Prev: v.Epoch, After: v.Token, Kind: n.Kind, Units: n.Units}
	a.Suspects = c.Suspects
	a.Set, a.Gone = v.diff(n.Members, c.Ended)
	if c.Plan != nil { // a copy in the view would keep all of them
		for i, m := range a.Set {
			one := *m
			a.Set[i] = &one
		}
	}
	return a, soon, len(a.Set) > 0 || len(a.Gone) > 0 || n.Kind != v.Kind || n.Units != v.Units
}

// copied returns the members as a plan may change them.
func copied(members []*Member) []*Member {
	all := make([]Member, len(members))
	list := make([]*Member, len(members))
	for i, m := range members {
		all[i] = *m
		list[i] = &all[i]
	}
	return list
}

// diff returns what leads from v's members to those given: the new and changed
// ones, and the ones that are no longer there.
func (v *View) diff(members []*Member, ended func(*Member) Departure) (set []*Member, gone []Departure) {
	old := make(map[string]*Member, len(v.Members))
	for _, m := range v.Members {
		old[m.PID] = m
	}
	for _, m := range members {
		before, ok := old[m.PID]
		if ok && before.Inc != m.Inc {
			gone = append(gone, ended(before))
		}
		if !ok || !before.equal(m) {
			set = append(set, m)
		}
		delete(old, m.PID)
	}
	for _, m := range old {
		gone = append(gone, ended(m))
	}
	s := View{Members: set} // followers sort faster what is sorted, or nearly
	s.count()
	return set, gone
}

// next returns the view that the step leads to.
func (v *View) next(a announcement) *View {
	if v.words == 0 {
		c := *v
		c.Members = slices.Clone(v.Members)
		c.count()
		v = &c
	}
	n := &View{Key: v.Key, Epoch: a.Epoch, Token: a.Token, PID: a.PID, Kind: a.Kind, Units: a.Units, Suspects: a.Suspects}
	n.Members, n.words = v.edited(a)
	if (n.words == 1) != (v.words == 1) { // rare: all names are numbers from now on, or no longer
		n.sort()
	}
	n.Gone = slices.Concat(v.Gone, a.Gone)
	n.Gone = n.Gone[max(0, len(n.Gone)-keepGone):]
	return n
}

// edited returns the members after the step, in the order of v's, and what is to be their
// view's words. It copies what stays in runs: a step changes few of a thousand.
func (v *View) edited(a announcement) (all []*Member, words int) {
	type edit struct {
		pid string
		m   *Member // nil: it is gone
	}
	order := token.OrderOf(v.words == 1)
	edits := make([]edit, 0, len(a.Set)+len(a.Gone))
	for _, m := range a.Set {
		edits = append(edits, edit{m.PID, m})
	}
	for _, d := range a.Gone { // behind the next incarnation, if there is one
		edits = append(edits, edit{d.PID, nil})
	}
	slices.SortStableFunc(edits, func(a, b edit) int { return order(a.pid, b.pid) })
	edits = slices.CompactFunc(edits, func(a, b edit) bool { return a.pid == b.pid })
	words = v.words
	all, rest := make([]*Member, 0, len(v.Members)+len(a.Set)), v.Members
	for _, e := range edits {
		i, found := find(rest, e.pid, order)
		all = append(all, rest[:i]...)
		if e.m != nil {
			all = append(all, e.m)
			words += word(e.pid)
		}
		if rest = rest[i:]; found {
			rest = rest[1:]
			words -= word(e.pid)
		}
	}
	return append(all, rest...), words
}

// parseView reads a view; an absent one is empty, with epoch 0.
func parseView(e kv.Entry) (*View, error) {
	v := &View{Key: e.Key}
	if e.Value == nil {
		return v, nil
	}
	if err := json.Unmarshal(e.Value, v); err != nil || v.Key != e.Key || v.Epoch == 0 {
		return nil, &lease.ForeignError{Key: e.Key}
	}
	if slices.Contains(v.Members, nil) { // a null of JSON
		return nil, &lease.ForeignError{Key: e.Key}
	}
	v.count()
	return v, nil
}

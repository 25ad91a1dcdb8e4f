package balance

import (
	"fmt"
	"iter"

	"github.com/natsfabric/natsfabric/fabric"
)

// A Share is what one member has of the group's work: the indices First to
// First+Workers-1 out of 0 to Total-1, as of one view; with the layout [Sticky], and in
// strict modes, any Workers of them, of which First is the lowest. All of it belongs
// together; a Share is a value, can be compared with ==, and never changes.
type Share struct {
	// First is the member's lowest index, and -1 without an index: it is passive, is
	// not ready, has left, or lost its lease.
	First int
	// Workers is how many indices the member was granted, which after SetWorkers is
	// the former number until the next view. It is 0 if and only if First is -1.
	Workers int
	// Total is how many indices the group has. In the share of a member that left
	// or lost its index, it counts the others, as of the last view.
	Total int
	// Epoch is the number of the view, the same at every member that acts on it.
	Epoch uint64
	// Stale: the member has not been able to renew its lease for a while, and may not
	// know of newer views. Unless it can before the lease's end, it loses its indices.
	Stale bool

	slots slots // the indices, if they are no range
}

// Indices returns the indices of the share in ascending order; none if First is -1.
func (s Share) Indices() iter.Seq[int] {
	if s.slots != "" {
		return s.slots.all()
	}
	return func(yield func(int) bool) {
		if s.First < 0 {
			return
		}
		for i := range s.Workers {
			if !yield(s.First + i) {
				return
			}
		}
	}
}

// Has reports whether the index i is in the share.
func (s Share) Has(i int) bool {
	if s.slots != "" {
		return s.slots.has(i)
	}
	return s.First >= 0 && i >= s.First && i-s.First < s.Workers
}

// String returns a form for people: "0..3 of 12 (epoch 7)", "none of 12 (epoch 7)",
// "0-3,7 of 12 (epoch 7)".
func (s Share) String() string {
	switch {
	case s.First < 0 || s.Workers <= 0:
		return fmt.Sprintf("none of %d (epoch %d)", s.Total, s.Epoch)
	case s.slots != "":
		return fmt.Sprintf("%s of %d (epoch %d)", s.slots, s.Total, s.Epoch)
	case s.Workers == 1:
		return fmt.Sprintf("%d of %d (epoch %d)", s.First, s.Total, s.Epoch)
	}
	return fmt.Sprintf("%d..%d of %d (epoch %d)", s.First, s.First+s.Workers-1, s.Total, s.Epoch)
}

// same reports whether s and o mean the same work; the epoch alone is no change.
func (s Share) same(o Share) bool {
	return s.First == o.First && s.Workers == o.Workers && s.Total == o.Total && s.slots == o.slots
}

// A Placed is one member of a group and its place in the view.
type Placed struct {
	PID     fabric.PID
	First   int // its lowest index; -1 if it has none
	Workers int // how many it was granted; 0 if it has none
	Self    bool
	// Incarnation is that of its node, 0 in a static group, and Standing how it stands in
	// the group.
	Incarnation uint64
	Standing    Standing

	slots slots // the indices, if they are no range
}

// Indices returns the member's indices in ascending order.
func (p Placed) Indices() iter.Seq[int] {
	return Share{First: p.First, Workers: p.Workers, slots: p.slots}.Indices()
}

// placedAt returns the place of a member that has the indices s.
func placedAt(pid string, s slots) Placed {
	sh := shareOf(s)
	return Placed{PID: fabric.PID(pid), First: sh.First, Workers: sh.Workers, slots: sh.slots}
}

// shareOf returns the share with the indices s: without slots, if they are a range.
func shareOf(s slots) Share {
	spans := s.spans()
	switch len(spans) {
	case 0:
		return Share{First: -1}
	case 1:
		return Share{First: spans[0].first, Workers: spans[0].n}
	}
	return Share{First: spans[0].first, Workers: countOf(spans), slots: s}
}

// units returns the indices of the share as a set.
func (s Share) units() slots {
	switch {
	case s.First < 0 || s.Workers <= 0:
		return ""
	case s.slots != "":
		return s.slots
	}
	return newSlots([]span{{s.First, s.Workers}})
}

// shareIn returns the share of the member in placed that is Self. Without one it
// has no index.
func shareIn(placed []Placed, total int, epoch uint64) Share {
	for _, p := range placed {
		if p.Self {
			return Share{First: p.First, Workers: p.Workers, Total: total, Epoch: epoch, slots: p.slots}
		}
	}
	return Share{First: -1, Total: total, Epoch: epoch}
}

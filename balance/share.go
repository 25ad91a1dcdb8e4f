package balance

import (
	"fmt"
	"iter"

	"github.com/natsfabric/natsfabric/fabric"
)

// A Share is what one member has of the group's work: the indices First to
// First+Workers-1 out of 0 to Total-1, as of one view. All four belong together; a
// Share is a value and never changes.
type Share struct {
	// First is the member's first index, and -1 without an index: it is passive,
	// has left, or lost its lease.
	First int
	// Workers is how many indices the member was granted, which after SetWorkers is
	// the former number until the next view. It is 0 if and only if First is -1.
	Workers int
	// Total is how many indices the group has. In the share of a member that left
	// or lost its index, it counts the others, as of the last view.
	Total int
	// Epoch is the number of the view, the same at every member that acts on it.
	Epoch uint64
}

// Indices returns the indices of the share in ascending order; none if First is -1.
func (s Share) Indices() iter.Seq[int] {
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
	return s.First >= 0 && i >= s.First && i-s.First < s.Workers
}

// String returns a form for people: "0..3 of 12 (epoch 7)", "none of 12 (epoch 7)".
func (s Share) String() string {
	switch {
	case s.First < 0 || s.Workers <= 0:
		return fmt.Sprintf("none of %d (epoch %d)", s.Total, s.Epoch)
	case s.Workers == 1:
		return fmt.Sprintf("%d of %d (epoch %d)", s.First, s.Total, s.Epoch)
	}
	return fmt.Sprintf("%d..%d of %d (epoch %d)", s.First, s.First+s.Workers-1, s.Total, s.Epoch)
}

// same reports whether s and o mean the same work; the epoch alone is no change.
func (s Share) same(o Share) bool {
	return s.First == o.First && s.Workers == o.Workers && s.Total == o.Total
}

// A Placed is one member of a group and its place in the view.
type Placed struct {
	PID     fabric.PID
	First   int // its first index; -1 if it is passive
	Workers int // how many it was granted; 0 if it is passive
	Self    bool
}

// shareIn returns the share of the member in placed that is Self. Without one it
// has no index.
func shareIn(placed []Placed, total int, epoch uint64) Share {
	for _, p := range placed {
		if p.Self {
			return Share{First: p.First, Workers: p.Workers, Total: total, Epoch: epoch}
		}
	}
	return Share{First: -1, Total: total, Epoch: epoch}
}

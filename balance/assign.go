package balance

import (
	"cmp"
	"slices"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/token"
)

// A want is what one member of a view asks for.
type want struct {
	pid     string
	workers int // 0 means 1
	passive bool
}

// assign says who gets which index. It is the only place that does, and a pure
// function of the set of wants, in any order: every member that has the same view
// computes the same placements. They are sorted by PID; each active member's range
// begins where the one before it ended, so that the ranges tile 0 to total-1. A
// passive member is placed at -1 with no workers, and so is one that would lift the
// total above [MaxTotal]. self is the PID whose placement is marked as the caller's.
func assign(self string, wants []want) (placed []Placed, total int) {
	order := token.Order(func(yield func(string) bool) {
		for _, w := range wants {
			if !yield(w.pid) {
				return
			}
		}
	})
	sorted := slices.Clone(wants)
	slices.SortFunc(sorted, func(a, b want) int {
		// A view names a PID once; the rest keeps a broken one from being placed
		// differently at two members.
		return cmp.Or(order(a.pid, b.pid), cmp.Compare(a.granted(), b.granted()))
	})
	placed = make([]Placed, len(sorted))
	for i, w := range sorted {
		p := Placed{PID: fabric.PID(w.pid), First: -1, Self: w.pid == self}
		if n := w.granted(); n > 0 && n <= MaxTotal-total {
			p.First, p.Workers = total, n
			total += n
		}
		placed[i] = p
	}
	return placed, total
}

// granted returns how many indices w counts for: none if it is passive, else what
// it asks for, brought into 1 to [MaxWorkers] in case the record is not ours.
func (w want) granted() int {
	if w.passive {
		return 0
	}
	return min(max(w.workers, DefaultWorkers), MaxWorkers)
}

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
		placed[i] = Placed{PID: fabric.PID(w.pid), Self: w.pid == self}
		placed[i].First, placed[i].Workers = w.after(&total)
	}
	return placed, total
}

// after returns the range that w has if those before it have so many indices in total,
// and adds its own.
func (w want) after(total *int) (first, workers int) {
	n := w.granted()
	if n <= 0 || n > MaxTotal-*total {
		return -1, 0
	}
	first = *total
	*total += n
	return first, n
}

// granted returns how many indices w counts for: none if it is passive, else what
// it asks for, brought into 1 to [MaxWorkers] in case the record is not ours.
func (w want) granted() int {
	if w.passive {
		return 0
	}
	return min(max(w.workers, DefaultWorkers), MaxWorkers)
}

// A holder is a member and what it has, for the assignments that depend on the one
// before.
type holder struct {
	pid     string
	workers int // 0: none
	weight  int // of all its workers together; for partitions
	zone    string
	has     slots
}

// sortHolders brings hs into the order in which ties are decided.
func sortHolders(hs []holder) {
	order := token.Order(func(yield func(string) bool) {
		for _, h := range hs {
			if !yield(h.pid) {
				return
			}
		}
	})
	slices.SortStableFunc(hs, func(a, b holder) int { return order(a.pid, b.pid) })
}

// assignSticky gives each holder as many indices as it has workers, out of 0 to
// total-1, where total is how many workers there are. Whoever has an index that is
// still there keeps it as long as it has the workers: so a join moves nothing, and
// when workers go, only indices at or above the new total and those that were given
// up get another holder. hs must be sorted; an index that two have is the first's.
func assignSticky(hs []holder) (given []slots, total int) {
	counts := make([]int, len(hs))
	for i, h := range hs {
		if h.workers <= MaxTotal-total {
			counts[i] = h.workers
			total += h.workers
		}
	}
	kept, rest := make([][]span, len(hs)), all(total)
	for i, h := range hs {
		mine := minus(rest, minus(rest, h.has.spans())) // of the free ones, those it has
		kept[i], _ = firstOf(mine, counts[i])
		rest = minus(rest, kept[i])
	}
	given = make([]slots, len(hs))
	for i := range hs {
		var more []span
		more, rest = firstOf(rest, counts[i]-countOf(kept[i]))
		given[i] = newSlots(append(kept[i], more...))
	}
	return given, total
}

// all returns 0 to n-1.
func all(n int) []span {
	if n <= 0 {
		return nil
	}
	return []span{{0, n}}
}

package roster

import (
	"cmp"
	"iter"
)

// A StepKind says what a [Step] is about.
type StepKind uint8

const (
	Joined   StepKind = iota + 1
	Departed          // as Departure says
	Changed
	Suspected
	Found // no longer suspected
)

// A Step is what happened to one member between two views.
type Step struct {
	Kind      StepKind
	Member    *Member // of Departed: as it was
	Departure Departure
}

// Steps yields what leads from one view to another: who is gone, then who is new, changed,
// suspected, and no longer is, each in the order of the PIDs. changed says whether a
// difference of one incarnation is worth a step.
func Steps(from, to *View, changed func(old, m *Member) bool) iter.Seq[Step] {
	return func(yield func(Step) bool) {
		now := make(map[string]uint64, len(to.Members))
		for _, m := range to.Members {
			now[m.PID] = m.Inc
		}
		before := make(map[string]*Member, len(from.Members))
		for _, m := range from.Members {
			before[m.PID] = m
			if now[m.PID] != m.Inc && !yield(Step{Departed, m, to.Ended(m.PID, m.Inc)}) {
				return
			}
		}
		for _, m := range to.Members {
			old := cmp.Or(before[m.PID], &absent)
			was, is := from.Suspects[m.PID] == m.Inc, to.Suspects[m.PID] == m.Inc
			if old.Inc != m.Inc {
				was = false
				if !yield(Step{Kind: Joined, Member: m}) {
					return
				}
			} else if changed(old, m) && !yield(Step{Kind: Changed, Member: m}) {
				return
			}
			if is && !was && !yield(Step{Kind: Suspected, Member: m}) || was && !is && !yield(Step{Kind: Found, Member: m}) {
				return
			}
		}
	}
}

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
// difference of one incarnation is worth a step; there is none between a member and itself.
func Steps(from, to *View, changed func(old, m *Member) bool) iter.Seq[Step] {
	return func(yield func(Step) bool) {
		_, olds, news := Differing(from, to)
		now := make(map[string]uint64, len(news))
		for _, m := range news {
			now[m.PID] = m.Inc
		}
		before := make(map[string]*Member, len(olds))
		for _, m := range olds {
			before[m.PID] = m
			if now[m.PID] != m.Inc && !yield(Step{Departed, m, to.Ended(m.PID, m.Inc)}) {
				return
			}
		}
		for _, m := range news {
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

// Differing returns the members of two views without those at the beginning, so many, and at
// the end that both have: of a thousand, a step changes few, and everybody looks at each.
func Differing(from, to *View) (first int, olds, news []*Member) {
	olds, news = from.Members, to.Members
	none := len(from.Suspects) == 0 && len(to.Suspects) == 0
	same := func(a, b *Member) bool {
		return a == b && (none || (from.Suspects[a.PID] == a.Inc) == (to.Suspects[a.PID] == a.Inc))
	}
	for len(olds) > 0 && len(news) > 0 && same(olds[0], news[0]) {
		olds, news = olds[1:], news[1:]
		first++
	}
	for n, k := len(olds)-1, len(news)-1; n >= 0 && k >= 0 && same(olds[n], news[k]); n, k = n-1, k-1 {
		olds, news = olds[:n], news[:k]
	}
	return first, olds, news
}

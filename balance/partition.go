package balance

import (
	"cmp"
	"slices"

	"github.com/natsfabric/natsfabric/internal/roster"
)

// assignParts gives each of the partitions 0 to parts-1 to one of the holders, by
// weight, and moves as few as can be. A holder whose fair part is not whole gets that
// number rounded down or up; nobody gets more. Among all such assignments it is one
// that takes the fewest partitions from those who have them. Partitions that nobody
// has are given out as well, without counting as moved.
//
// At most budget partitions are moved (negative: any number); what is over the fair
// part then stays where it is until the next time.
//
// hs must be sorted; a partition that two have is the first's. With no weight at all,
// nobody gets any.
func assignParts(hs []holder, parts, budget int) []slots {
	rest := all(parts)
	has := make([][]span, len(hs))
	for i, h := range hs {
		has[i] = minus(rest, minus(rest, h.has.spans()))
		rest = minus(rest, has[i])
	}
	want := quotas(hs, has, parts)
	if want == nil {
		return make([]slots, len(hs))
	}
	// Who has too much gives its highest; where the budget allows.
	for i := range hs {
		over := countOf(has[i]) - want[i]
		if budget >= 0 {
			over = min(over, budget)
		}
		if over > 0 {
			if budget >= 0 {
				budget -= over
			}
			var gives []span
			has[i], gives = firstOf(has[i], countOf(has[i])-over)
			rest = joined(append(rest, gives...))
		}
	}
	given := make([]slots, len(hs))
	for i := range hs {
		var more []span
		more, rest = firstOf(rest, want[i]-countOf(has[i]))
		given[i] = newSlots(append(has[i], more...))
	}
	return given
}

// assignZones gives out all the partitions in each zone by themselves. members and hs are
// the same, in the same order.
func assignZones(members []*roster.Member, k kind, hs []holder, parts, budget int) []slots {
	zones := map[string][]int{}
	for i, m := range members {
		zones[k.zone(m)] = append(zones[k.zone(m)], i)
	}
	given := make([]slots, len(hs))
	for _, list := range zones {
		some := make([]holder, len(list))
		for j, i := range list {
			some[j] = hs[i]
		}
		for j, s := range assignParts(some, parts, budget) {
			given[list[j]] = s
		}
	}
	return given
}

// quotas returns how many partitions each holder should have: its part by weight,
// rounded down, and one more for some, so that all are given out. One more goes first
// to those who have it already, then to the largest remainder, then where the zone has
// the least so far. Nil if nobody has any weight.
func quotas(hs []holder, has [][]span, parts int) []int {
	var sum int64
	for _, h := range hs {
		sum += int64(h.weight)
	}
	if sum == 0 {
		return nil
	}
	want := make([]int, len(hs))
	left := parts
	var up []fraction
	zones := map[string]int64{} // what a zone has over its exact part, times sum
	for i, h := range hs {
		exact := int64(parts) * int64(h.weight)
		want[i] = int(exact / sum)
		left -= want[i]
		zones[h.zone] -= exact % sum
		if r := exact % sum; r > 0 {
			up = append(up, fraction{i, h.zone, r, countOf(has[i]) > want[i]})
		}
	}
	slices.SortStableFunc(up, fraction.before)
	for len(up) > 0 && left > 0 {
		equal := 1 // as far as they all have the same claim to one more, the zones decide
		for equal < len(up) && up[0].before(up[equal]) == 0 {
			equal++
		}
		queues := map[string][]fraction{}
		var names []string
		for _, f := range up[:equal] {
			if queues[f.zone] == nil {
				names = append(names, f.zone)
			}
			queues[f.zone] = append(queues[f.zone], f)
		}
		for range min(equal, left) {
			names = slices.DeleteFunc(names, func(z string) bool { return len(queues[z]) == 0 })
			z := slices.MinFunc(names, func(a, b string) int {
				return cmp.Or(cmp.Compare(zones[a], zones[b]), cmp.Compare(queues[a][0].i, queues[b][0].i))
			})
			want[queues[z][0].i]++
			zones[z] += sum
			queues[z] = queues[z][1:]
			left--
		}
		up = up[equal:]
	}
	return want
}

// A fraction is a holder whose part is not whole.
type fraction struct {
	i         int
	zone      string
	remainder int64
	keeps     bool // it has one more than its part rounded down
}

func (f fraction) before(o fraction) int {
	if f.keeps != o.keeps {
		if f.keeps {
			return -1
		}
		return 1
	}
	return cmp.Compare(o.remainder, f.remainder)
}

// double returns s for a number of partitions that is factor times as large: each
// partition p becomes p, p+parts, p+2*parts and so on, so that what a key belongs to
// keeps its holder.
func (s slots) double(parts, factor int) slots {
	var out []span
	for k := range factor {
		for sp := range s.each() {
			out = append(out, span{sp.first + k*parts, sp.n})
		}
	}
	return newSlots(out)
}

package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// owners returns who has each of n units; -1 if nobody has it, and complains if two do.
func owners(t *testing.T, given []slots, n int) []int {
	t.Helper()
	list := slices.Repeat([]int{-1}, n)
	for i, g := range given {
		for u := range g.all() {
			switch {
			case u >= n:
				t.Fatalf("holder %d has %d of %d", i, u, n)
			case list[u] >= 0:
				t.Fatalf("%d and %d both have %d", list[u], i, u)
			}
			list[u] = i
		}
	}
	return list
}

func TestAssignSticky(t *testing.T) {
	h := func(pid string, workers int, has slots) holder { return holder{pid: pid, workers: workers, has: has} }
	for _, tt := range []struct {
		name  string
		hs    []holder
		want  []slots
		total int
	}{
		{"nobody", nil, []slots{}, 0},
		{"at first in order", []holder{h("a", 2, ""), h("b", 3, "")}, []slots{"0-1", "2-4"}, 5},
		{"a join moves nothing", []holder{h("a", 2, "3-4"), h("b", 3, "0-2"), h("c", 2, "")}, []slots{"3-4", "0-2", "5-6"}, 7},
		{"a leave moves what is above the total", []holder{h("a", 2, "0-1"), h("c", 2, "5-6")}, []slots{"0-1", "2-3"}, 4},
		{"fewer workers", []holder{h("a", 1, "0-1"), h("b", 2, "2-3")}, []slots{"0", "1-2"}, 3},
		{"no workers", []holder{h("a", 0, "0-1"), h("b", 2, "2-3")}, []slots{"", "0-1"}, 2},
		{"a view that is not ours", []holder{h("a", 2, "0-9"), h("b", 2, "0,5"), h("c", 1, "x")}, []slots{"0-1", "2-3", "4"}, 5},
	} {
		got, total := assignSticky(tt.hs)
		if !slices.Equal(got, tt.want) || total != tt.total {
			t.Errorf("%s: %q of %d, want %q of %d", tt.name, got, total, tt.want, tt.total)
		}
	}
}

// FuzzAssignSticky: the indices tile 0 to total-1, everyone has as many as workers,
// and keeps whatever it had below the total, as far as it has workers for it: no
// assignment moves less.
func FuzzAssignSticky(f *testing.F) {
	f.Add(uint64(1), 40)
	f.Fuzz(func(t *testing.T, seed uint64, steps int) {
		r := rand.New(rand.NewPCG(seed, 0))
		members := map[string]*holder{}
		for step := range min(max(steps, 0), 60) {
			change(r, members)
			hs := sorted(members)
			given, total := assignSticky(hs)
			list := owners(t, given, total)
			if slices.Contains(list, -1) {
				t.Fatalf("step %d: %v does not tile %d", step, given, total)
			}
			for i, h := range hs {
				if got := given[i].count(); got != h.workers {
					t.Fatalf("step %d: %s has %q, want %d", step, h.pid, given[i], h.workers)
				}
				below := h.has.both(newSlots(all(total))).count()
				if kept := h.has.both(given[i]).count(); kept != min(h.workers, below) {
					t.Fatalf("step %d: %s had %q and keeps %d in %q of %d", step, h.pid, h.has, kept, given[i], total)
				}
				members[h.pid].has = given[i]
			}
		}
	})
}

// change lets a random member join, leave, change its workers or weight, or move.
func change(r *rand.Rand, members map[string]*holder) {
	pid := fmt.Sprint("m", r.IntN(40))
	m, here := members[pid]
	switch {
	case !here:
		members[pid] = &holder{pid: pid, workers: r.IntN(6), weight: r.IntN(9), zone: fmt.Sprint(r.IntN(3))}
	case r.IntN(3) == 0:
		delete(members, pid)
	case r.IntN(2) == 0:
		m.workers = r.IntN(6)
		m.weight = r.IntN(9)
	default:
		m.zone = fmt.Sprint(r.IntN(3))
	}
}

func sorted(members map[string]*holder) []holder {
	var hs []holder
	for _, m := range members {
		hs = append(hs, *m)
	}
	sortHolders(hs)
	return hs
}

// leastMoved is how many partitions must at least change their holder, found by trying
// all ways to round parts up and down.
func leastMoved(hs []holder, parts int) int {
	sum := 0
	for _, h := range hs {
		sum += h.weight
	}
	if sum == 0 {
		return 0
	}
	held := 0
	// most[k] is how many can be kept at most when k of the holders so far get one more.
	most := map[int]int{0: 0}
	low := 0
	for _, h := range hs {
		floor := parts * h.weight / sum
		low += floor
		has := h.has.count()
		held += has
		next := map[int]int{}
		for k, kept := range most {
			next[k] = max(next[k], kept+min(floor, has))
			if parts*h.weight%sum > 0 {
				next[k+1] = max(next[k+1], kept+min(floor+1, has))
			}
		}
		most = next
	}
	return held - most[parts-low]
}

// TestPartitionsMoveTheLeast takes 10 000 random steps; each moves as little as any
// assignment could that is as even, and nobody has more than its part, rounded up.
func TestPartitionsMoveTheLeast(t *testing.T) {
	t.Parallel()
	const parts = 256
	r := rand.New(rand.NewPCG(5, 5))
	members := map[string]*holder{}
	moved, steps := 0, natstest.Fewer(10_000)
	for step := range steps {
		change(r, members)
		hs := sorted(members)
		given := assignParts(hs, parts, -1)
		moved += checkParts(t, hs, given, parts)
		if t.Failed() {
			t.Fatalf("step %d", step)
		}
		for i, h := range hs {
			members[h.pid].has = given[i]
		}
	}
	t.Logf("%d of %d partitions moved in a step, on average", moved/steps, parts)
}

func checkParts(t *testing.T, hs []holder, given []slots, parts int) (moved int) {
	list := owners(t, given, parts)
	sum := 0
	for _, h := range hs {
		sum += h.weight
	}
	if (sum > 0) == slices.Contains(list, -1) && len(hs) > 0 {
		t.Errorf("with weight %d: %v", sum, list)
	}
	for i, h := range hs {
		got := given[i].count()
		if sum > 0 && got > (parts*h.weight+sum-1)/sum || sum > 0 && got < parts*h.weight/sum {
			t.Errorf("%s with weight %d of %d has %d of %d", h.pid, h.weight, sum, got, parts)
		}
		moved += h.has.without(given[i]).count()
	}
	if least := leastMoved(hs, parts); sum > 0 && moved != least {
		t.Errorf("%d moved, %d would do", moved, least)
	}
	return moved
}

// FuzzAssignParts: as above, for any number of partitions, and whatever a view says
// that the holders have.
func FuzzAssignParts(f *testing.F) {
	f.Add(uint64(1), uint16(64), 30)
	f.Add(uint64(2), uint16(3), 30)
	f.Fuzz(func(t *testing.T, seed uint64, n uint16, steps int) {
		parts := int(n)%512 + 1
		r := rand.New(rand.NewPCG(seed, 1))
		members := map[string]*holder{}
		for range min(max(steps, 0), 40) {
			change(r, members)
			hs := sorted(members)
			given := assignParts(hs, parts, -1)
			checkParts(t, hs, given, parts)
			for i, h := range hs {
				members[h.pid].has = given[i]
			}
		}
		if len(members) == 0 {
			return
		}
		hs := sorted(members)
		for i := range hs { // nonsense
			hs[i].has = slots(fmt.Sprintf("%d-%d", r.IntN(parts), r.IntN(2*parts)))
		}
		owners(t, assignParts(hs, parts, -1), parts)
	})
}

// With a budget, partitions that nobody has are given out at once, the others at most
// so many at a time, until the parts are even.
func TestPartitionsMoveWithinTheBudget(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	members := map[string]*holder{}
	const parts, budget = 256, 12
	for range 200 {
		change(r, members)
		for round := 0; ; round++ {
			hs := sorted(members)
			given := assignParts(hs, parts, budget)
			owners(t, given, parts)
			moved, sum := 0, 0
			for i, h := range hs {
				moved += h.has.without(given[i]).count()
				members[h.pid].has = given[i]
				sum += h.weight
			}
			if sum > 0 && moved > budget {
				t.Fatalf("%d moved at once, the budget is %d", moved, budget)
			}
			if moved == 0 || sum == 0 {
				if sum > 0 {
					checkParts(t, sorted(members), given, parts)
				}
				break
			}
			if round > parts/budget+1 {
				t.Fatal("it does not come to an end")
			}
		}
	}
}

// Twice as many partitions move nothing: what a key belongs to keeps its holder.
func TestDoublingMovesNothing(t *testing.T) {
	hs := []holder{{pid: "a", weight: 1}, {pid: "b", weight: 2}, {pid: "c", weight: 5}}
	const parts = 24
	given := assignParts(hs, parts, -1)
	before := owners(t, given, parts)
	for i := range hs {
		hs[i].has = given[i].double(parts, 4)
	}
	again := assignParts(hs, 4*parts, -1)
	after := owners(t, again, 4*parts)
	for p, owner := range after {
		if owner != before[p%parts] {
			t.Errorf("partition %d of %d is %d's, %d of %d was %d's", p, 4*parts, owner, p%parts, parts, before[p%parts])
		}
	}
}

// A partition is tied to no zone; between members with the same claim to one more, the
// zone with less goes first.
func TestPartitionsAreEvenBetweenZones(t *testing.T) {
	hs := []holder{{pid: "a", weight: 1, zone: "x"}, {pid: "b", weight: 1, zone: "x"}, {pid: "c", weight: 1, zone: "y"}, {pid: "d", weight: 1, zone: "y"}}
	given := assignParts(hs, 6, -1)
	if x, y := given[0].count()+given[1].count(), given[2].count()+given[3].count(); x != 3 || y != 3 {
		t.Errorf("zone x has %d, y has %d, want 3 and 3: %q", x, y, given)
	}
}

func BenchmarkAssignParts(b *testing.B) {
	var hs []holder
	for i := range 1000 {
		hs = append(hs, holder{pid: fmt.Sprint(i), weight: 1})
	}
	for i, g := range assignParts(hs, 1024, -1) {
		hs[i].has = g
	}
	for b.Loop() {
		assignParts(hs[1:], 1024, -1)
	}
}

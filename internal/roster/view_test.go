package roster

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"weak"

	"github.com/natsfabric/natsfabric/internal/token"
)

// TestNext compares views that follow each other with what a map and a sort make of the
// same steps: members come, change and go, and names that are all numbers are sorted as
// such, until one is not.
func TestNext(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	v, want := &View{Key: "v.x"}, map[string]Member{}
	for epoch := uint64(1); epoch < 3000; epoch++ {
		a := announcement{Epoch: epoch}
		touched := map[string]bool{}
		for range r.IntN(5) {
			pid := fmt.Sprint(r.IntN(40))
			if r.IntN(200) == 0 {
				pid = "not-a-number"
			}
			if touched[pid] {
				continue
			}
			touched[pid] = true
			if _, here := want[pid]; here && r.IntN(2) == 0 {
				a.Gone = append(a.Gone, Departure{PID: pid})
				delete(want, pid)
			} else {
				want[pid] = Member{PID: pid, Inc: epoch}
				m := want[pid]
				a.Set = append(a.Set, &m)
			}
		}
		if want["not-a-number"].PID != "" && r.IntN(20) == 0 && !touched["not-a-number"] {
			a.Gone = append(a.Gone, Departure{PID: "not-a-number"})
			delete(want, "not-a-number")
		}
		before := lines(v)
		next := v.next(a)
		if !reflect.DeepEqual(lines(v), before) {
			t.Fatalf("epoch %d: the view before has changed", epoch)
		}
		v = next
		var pids, got []string
		for pid := range want {
			pids = append(pids, pid)
		}
		slices.SortFunc(pids, token.Order(slices.Values(pids)))
		for _, m := range v.Members {
			got = append(got, m.PID)
			if m.Inc != want[m.PID].Inc {
				t.Fatalf("epoch %d: %s has incarnation %d, want %d", epoch, m.PID, m.Inc, want[m.PID].Inc)
			}
		}
		if !slices.Equal(got, pids) {
			t.Fatalf("epoch %d: members %v, want %v", epoch, got, pids)
		}
		for n := range 40 {
			pid := fmt.Sprint(n)
			if m, ok := v.Find(pid); ok != (want[pid].PID != "") || m.Inc != want[pid].Inc {
				t.Fatalf("epoch %d: found %v, %v for %s, want %v", epoch, m, ok, pid, want[pid])
			}
		}
	}
}

// TestStepKeepsNoCopies: of the copies that a plan works on, a view keeps what has changed.
func TestStepKeepsNoCopies(t *testing.T) {
	v := &View{Key: "v.x"}
	var list []*Member
	for i := range 100 {
		list = append(list, &Member{PID: fmt.Sprint(i), Inc: 1})
	}
	a, _, _ := v.step(&Count{Members: list})
	v = v.next(a)
	var copied weak.Pointer[Member]
	a, _, _ = v.step(&Count{Members: list, Plan: func(_, next *View) bool {
		next.Members[3].Slots = "7"
		copied = weak.Make(next.Members[5])
		return false
	}})
	v = v.next(a)
	runtime.GC()
	if copied.Value() != nil {
		t.Error("the view keeps all that the plan worked on")
	}
	if m, _ := v.Find("3"); m.Slots != "7" {
		t.Errorf("member 3 is %v", m)
	}
}

// lines returns the members as they are now.
func lines(v *View) (all []Member) {
	for _, m := range v.Members {
		all = append(all, *m)
	}
	return all
}

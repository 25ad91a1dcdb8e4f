package roster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestSteps: of views that share members, as one that follows another does, the steps are
// those of views that share none, and add up to the view.
func TestSteps(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		from := &View{Epoch: 1}
		for i := range r.IntN(8) {
			from.Members = append(from.Members, &Member{PID: fmt.Sprint("m", i), Inc: 1 + r.Uint64N(3)})
		}
		to := &View{Epoch: 2}
		for _, m := range from.Members {
			switch n := *m; r.IntN(8) {
			case 0: // gone
				to.Gone = append(to.Gone, Departure{PID: m.PID, Inc: m.Inc})
				continue
			case 1: // again
				n.Inc += 10
				to.Members = append(to.Members, &n)
			case 2: // changed
				n.Host = "other"
				to.Members = append(to.Members, &n)
			default:
				to.Members = append(to.Members, m)
			}
		}
		if at := len(to.Members); r.IntN(2) == 0 { // in front, between, or behind
			at = r.IntN(at + 1)
			to.Members = slices.Insert(to.Members, at, &Member{PID: fmt.Sprint("n", at), Inc: 9})
		}
		for _, v := range []*View{from, to} {
			v.Suspects = map[string]uint64{}
			for _, m := range v.Members {
				if r.IntN(6) == 0 {
					v.Suspects[m.PID] = m.Inc + r.Uint64N(2)
				}
			}
		}
		got, want := all(from, to), all(from, apart(to))
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: steps %v, want %v", seed, got, want)
		}
		if here := add(from, to); !slices.Equal(here, pids(to)) {
			t.Fatalf("seed %d: the steps lead to %v, want %v", seed, here, pids(to))
		}
	}
}

func host(old, m *Member) bool { return old.Host != m.Host }

// all returns the steps as text.
func all(from, to *View) (list []string) {
	for s := range Steps(from, to, host) {
		list = append(list, fmt.Sprint(s.Kind, " ", *s.Member, " ", s.Departure))
	}
	return list
}

// apart returns v with members of its own.
func apart(v *View) *View {
	v = &View{Epoch: v.Epoch, Members: slices.Clone(v.Members), Gone: v.Gone, Suspects: v.Suspects}
	for i, m := range v.Members {
		n := *m
		v.Members[i] = &n
	}
	return v
}

// add returns who is there after the steps, sorted.
func add(from, to *View) []string {
	here := pids(from)
	for s := range Steps(from, to, host) {
		switch s.Kind {
		case Departed:
			here = slices.DeleteFunc(here, func(pid string) bool { return pid == s.Member.PID })
		case Joined:
			here = append(here, s.Member.PID)
		}
	}
	slices.Sort(here)
	return here
}

func pids(v *View) (list []string) {
	for _, m := range v.Members {
		list = append(list, m.PID)
	}
	slices.Sort(list)
	return list
}

// BenchmarkSteps: one of a thousand is gone.
func BenchmarkSteps(b *testing.B) {
	from := &View{Epoch: 1}
	for i := range 1000 {
		from.Members = append(from.Members, &Member{PID: fmt.Sprint("m", i), Inc: uint64(i + 1)})
	}
	to := &View{Epoch: 2, Members: slices.Delete(slices.Clone(from.Members), 500, 501)}
	from.Suspects = map[string]uint64{"m500": 501}
	for b.Loop() {
		for range Steps(from, to, host) {
		}
	}
}

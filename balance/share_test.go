package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/natsfabric/natsfabric/internal/roster"
)

func TestShare(t *testing.T) {
	tests := []struct {
		share   Share
		indices []int
		text    string
	}{
		{Share{First: 0, Workers: 1, Total: 1, Epoch: 1}, []int{0}, "0 of 1 (epoch 1)"},
		{Share{First: 2, Workers: 3, Total: 7, Epoch: 4}, []int{2, 3, 4}, "2..4 of 7 (epoch 4)"},
		{Share{First: -1, Total: 7, Epoch: 4}, nil, "none of 7 (epoch 4)"},
		{Share{First: -1, Workers: 2, Total: 7}, nil, "none of 7 (epoch 0)"},
		{Share{}, nil, "none of 0 (epoch 0)"},
	}
	for _, tt := range tests {
		if got := slices.Collect(tt.share.Indices()); !slices.Equal(got, tt.indices) {
			t.Errorf("%+v.Indices() = %v, want %v", tt.share, got, tt.indices)
		}
		for i := -3; i < 10; i++ {
			if got, want := tt.share.Has(i), slices.Contains(tt.indices, i); got != want {
				t.Errorf("%+v.Has(%d) = %v, want %v", tt.share, i, got, want)
			}
		}
		if got := tt.share.String(); got != tt.text {
			t.Errorf("%+v.String() = %q, want %q", tt.share, got, tt.text)
		}
	}
	for i := range (Share{First: 2, Workers: 3, Total: 7}).Indices() {
		if i == 3 {
			break // a loop may end early
		}
	}
}

func TestShareHasAtTheLimit(t *testing.T) {
	s := Share{First: MaxTotal - 1, Workers: 1, Total: MaxTotal}
	if s.Has(MaxTotal) || s.Has(-1) || !s.Has(MaxTotal-1) {
		t.Errorf("%v: Has is wrong at the limit", s)
	}
}

// TestShareOfView: what a member computes of a view is what all of its placements say.
func TestShareOfView(t *testing.T) {
	for _, k := range kinds {
		p := newPlanner(t, 3, k)
		for range 300 {
			p.churn()
			p.step()
			p.learn(false)
			for _, m := range append(p.view.Members, &roster.Member{PID: "nobody"}) {
				placed, total := placements(m.PID, p.view)
				if got, want := shareOfView(m.PID, p.view), shareIn(placed, total, p.view.Epoch); got != want {
					t.Fatalf("kind %q: %s has %+v of %+v, want %+v", k, m.PID, got, p.view, want)
				}
			}
		}
	}
}

// TestShareAfter: what a member computes of what has changed is what it computes of all.
func TestShareAfter(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 1))
	pid := func() string { return fmt.Sprintf("%02d", r.IntN(30)) }
	before, was := &roster.View{}, map[string]Share{}
	for i := range 30 {
		self := fmt.Sprintf("%02d", i)
		was[self] = shareOfView(self, before)
	}
	for epoch := range uint64(5000) {
		v := &roster.View{Kind: kind{}.String(), Epoch: epoch, Members: slices.Clone(before.Members)}
		for range 1 + r.IntN(3) {
			m := &roster.Member{PID: pid(), Inc: epoch, Ask: roster.Ask{Workers: 1 + r.IntN(4), Passive: r.IntN(5) == 0, Idle: r.IntN(5) == 0}}
			i, ok := slices.BinarySearchFunc(v.Members, m.PID, func(m *roster.Member, pid string) int { return strings.Compare(m.PID, pid) })
			switch {
			case !ok:
				v.Members = slices.Insert(v.Members, i, m)
			case r.IntN(2) == 0:
				v.Members = slices.Delete(v.Members, i, i+1)
			default:
				v.Members[i] = m
			}
		}
		for self, s := range was {
			got, want := shareAfter(s, before, self, v), shareOfView(self, v)
			if got != want {
				t.Fatalf("%s has %+v of %+v after %+v of %+v, want %+v", self, got, v, s, before, want)
			}
			was[self] = want
		}
		before = v
	}
}

// TestShareAfterFull: near the limit not everybody gets what he wants, whoever has changed.
func TestShareAfterFull(t *testing.T) {
	view := func(workers ...int) *roster.View {
		v := &roster.View{Kind: kind{}.String()}
		for i, n := range workers {
			v.Members = append(v.Members, &roster.Member{PID: fmt.Sprintf("%04d", i), Inc: 1, Ask: roster.Ask{Workers: n}})
		}
		return v
	}
	many := slices.Repeat([]int{MaxWorkers}, MaxTotal/MaxWorkers+3)
	before, v := view(many...), view(many...)
	copy(v.Members[1:], before.Members[1:])
	v.Members[0].Workers = 1
	for _, i := range []int{0, 1, len(many) - 4, len(many) - 3, len(many) - 1} {
		self := before.Members[i].PID
		if got, want := shareAfter(shareOfView(self, before), before, self, v), shareOfView(self, v); got != want {
			t.Errorf("%s has %+v, want %+v", self, got, want)
		}
	}
}

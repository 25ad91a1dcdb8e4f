package balance

import (
	"slices"
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

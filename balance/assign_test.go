package balance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/natsfabric/natsfabric/internal/token"
)

func TestAssign(t *testing.T) {
	tests := []struct {
		name  string
		wants []want
		want  []Placed
		total int
	}{
		{"nobody", nil, []Placed{}, 0},
		{"one", []want{{"a", 1, false}}, []Placed{{PID: "a", First: 0, Workers: 1, Self: false}}, 1},
		{"zero workers mean one", []want{{"a", 0, false}}, []Placed{{PID: "a", First: 0, Workers: 1, Self: false}}, 1},
		{
			"libcluster's README",
			[]want{{"node3", 4, false}, {"node1", 2, false}, {"node2", 1, false}},
			[]Placed{{PID: "node1", First: 0, Workers: 2, Self: false}, {PID: "node2", First: 2, Workers: 1, Self: false}, {PID: "node3", First: 3, Workers: 4, Self: false}}, 7,
		},
		{
			"numbers sort as numbers",
			[]want{{"10", 1, false}, {"9", 2, false}},
			[]Placed{{PID: "9", First: 0, Workers: 2, Self: false}, {PID: "10", First: 2, Workers: 1, Self: false}}, 3,
		},
		{
			"bytewise as soon as one is no number",
			[]want{{"9", 1, false}, {"10", 1, false}, {"x", 1, false}},
			[]Placed{{PID: "10", First: 0, Workers: 1, Self: false}, {PID: "9", First: 1, Workers: 1, Self: false}, {PID: "x", First: 2, Workers: 1, Self: false}}, 3,
		},
		{
			"passive adds nothing",
			[]want{{"c", 1, false}, {"b", 8, true}, {"a", 2, false}},
			[]Placed{{PID: "a", First: 0, Workers: 2, Self: false}, {PID: "b", First: -1, Workers: 0, Self: false}, {PID: "c", First: 2, Workers: 1, Self: false}}, 3,
		},
		{"only passive", []want{{"a", 1, true}}, []Placed{{PID: "a", First: -1, Workers: 0, Self: false}}, 0},
		{
			"self is marked",
			[]want{{"self", 1, false}, {"a", 1, false}},
			[]Placed{{PID: "a", First: 0, Workers: 1, Self: false}, {PID: "self", First: 1, Workers: 1, Self: true}}, 2,
		},
		{
			"foreign records are brought into range",
			[]want{{"a", -5, false}, {"b", MaxWorkers + 1, false}},
			[]Placed{{PID: "a", First: 0, Workers: 1, Self: false}, {PID: "b", First: 1, Workers: MaxWorkers, Self: false}}, MaxWorkers + 1,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, total := assign("self", tt.wants)
			if !slices.Equal(got, tt.want) || total != tt.total {
				t.Errorf("assign(%v) = %v, %d, want %v, %d", tt.wants, got, total, tt.want, tt.total)
			}
		})
	}
}

func TestAssignMaxTotal(t *testing.T) {
	const full = MaxTotal / MaxWorkers // members that get all they want
	var wants []want
	for i := range full + 2 {
		wants = append(wants, want{pid: strconv.Itoa(i), workers: MaxWorkers})
	}
	wants = append(wants, want{pid: strconv.Itoa(full + 2), workers: MaxTotal % MaxWorkers})
	placed, total := assign("", wants)
	if total != MaxTotal {
		t.Errorf("total = %d, want %d", total, MaxTotal)
	}
	for _, p := range placed[full : full+2] {
		if p.First != -1 || p.Workers != 0 {
			t.Errorf("the member that does not fit = %+v, want no index", p)
		}
	}
	if last := placed[full+2]; last.First+last.Workers != MaxTotal {
		t.Errorf("the member that just fits = %+v, want it to end at %d", last, MaxTotal)
	}
}

// FuzzAssign: for any wants, the ranges tile 0 to total-1 in PID order, everyone
// active has what it asked for, and the order of the wants does not matter.
func FuzzAssign(f *testing.F) {
	f.Add([]byte(nil), uint64(0))
	f.Add([]byte{1, 1, 2, 2, 1, 0, 3, 4, 0}, uint64(1))
	f.Add([]byte{200, 250, 1, 10, 251, 0, 9, 255, 0, 9, 3, 1}, uint64(2))
	f.Add([]byte{9, 1, 0, 9, 5, 0, 9, 3, 0, 9, 4, 0}, uint64(3)) // a view that is broken
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		wants := decodeWants(data)
		placed, total := assign("7", wants)
		checkPlaced(t, wants, placed, total)

		shuffled := slices.Clone(wants)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(shuffled), func(i, j int) {
			shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
		})
		again, totalAgain := assign("7", shuffled)
		if !slices.Equal(again, placed) || totalAgain != total {
			t.Errorf("assign(%v) = %v, %d, in another order %v, %d", wants, placed, total, again, totalAgain)
		}
	})
}

// decodeWants turns each three bytes into a member: numbers and names as PIDs,
// sensible and senseless numbers of workers.
func decodeWants(data []byte) []want {
	var wants []want
	for b := range slices.Chunk(data, 3) {
		if len(b) < 3 {
			break
		}
		w := want{pid: strconv.Itoa(int(b[0])), workers: int(b[1]), passive: b[2]&1 == 1}
		if b[2]&128 != 0 {
			w.pid = "n" + w.pid
		}
		if b[1] > 250 {
			w.workers = []int{-1, -1 << 31, MaxWorkers, MaxWorkers + 1, 1<<31 - 1}[b[1]-251]
		}
		wants = append(wants, w)
	}
	return wants
}

func checkPlaced(t *testing.T, wants []want, placed []Placed, total int) {
	t.Helper()
	if len(placed) != len(wants) {
		t.Fatalf("%d placed of %d", len(placed), len(wants))
	}
	asked := map[string]int{} // entries of that placement
	for _, w := range wants {
		asked[fmt.Sprint(w.pid, w.granted())]++
	}
	order := token.Order(func(yield func(string) bool) {
		for _, w := range wants {
			if !yield(w.pid) {
				return
			}
		}
	})
	next := 0
	for i, p := range placed {
		if i > 0 && order(string(placed[i-1].PID), string(p.PID)) > 0 {
			t.Errorf("%s stands before %s", placed[i-1].PID, p.PID)
		}
		if asked[fmt.Sprint(string(p.PID), p.Workers)]--; asked[fmt.Sprint(string(p.PID), p.Workers)] < 0 {
			t.Errorf("%+v: nobody asked for that", p)
		}
		if p.Self != (p.PID == "7") {
			t.Errorf("%+v: Self is wrong", p)
		}
		switch {
		case p.Workers == 0 && p.First == -1:
		case p.Workers > 0 && p.Workers <= MaxWorkers && p.First == next:
			next += p.Workers
		default:
			t.Errorf("%+v: want First %d", p, next)
		}
	}
	if next != total {
		t.Errorf("the ranges end at %d, total is %d", next, total)
	}
}

func BenchmarkAssign(b *testing.B) {
	var wants []want
	for i := range 1000 {
		wants = append(wants, want{pid: fmt.Sprintf("node-%d", i*7919%1000), workers: 4})
	}
	for b.Loop() {
		assign("node-1", wants)
	}
}

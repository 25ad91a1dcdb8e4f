package natstest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// A Tally knows what number each of several observers saw last, and tells when enough
// of them agree. It is safe for concurrent use.
type Tally struct {
	mu   sync.Mutex // guards the fields below
	saw  []int
	of   map[int]int // how many saw a number last
	want int
	need int
	all  chan struct{} // closed when so many saw what is wanted; nil if nobody waits
}

// NewTally returns the Tally of n observers, who have seen 0.
func NewTally(n int) *Tally {
	return &Tally{saw: make([]int, n), of: map[int]int{0: n}}
}

// Saw says that observer i has seen the number.
func (t *Tally) Saw(i, number int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of[t.saw[i]]--
	t.saw[i] = number
	t.of[number]++
	t.look()
}

// Agreed returns a channel that is closed when so many observers saw the number last. It
// takes the place of the channel of the call before, which is then never closed.
func (t *Tally) Agreed(number, observers int) <-chan struct{} {
	all := make(chan struct{})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.want, t.need, t.all = number, observers, all
	t.look()
	return all
}

// String returns how many saw which numbers last, as in "99 saw 100, 1 saw 101".
func (t *Tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []string
	for _, number := range slices.Sorted(maps.Keys(t.of)) {
		if n := t.of[number]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d saw %d", n, number))
		}
	}
	return strings.Join(parts, ", ")
}

// look needs mu.
func (t *Tally) look() {
	if t.all != nil && t.of[t.want] >= t.need {
		close(t.all)
		t.all = nil
	}
}

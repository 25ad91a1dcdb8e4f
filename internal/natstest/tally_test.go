package natstest

import (
	"sync"
	"testing"
)

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestTally(t *testing.T) {
	tally := NewTally(3)
	if !closed(tally.Agreed(0, 3)) {
		t.Error("three who have seen nothing do not agree on 0")
	}
	two := tally.Agreed(7, 2)
	tally.Saw(0, 7)
	tally.Saw(0, 7)
	if closed(two) {
		t.Error("one who saw 7 twice is two")
	}
	tally.Saw(1, 7)
	if !closed(two) {
		t.Error("two who saw 7 do not agree")
	}
	three := tally.Agreed(7, 3)
	tally.Saw(1, 8)
	tally.Saw(2, 7)
	if got, want := tally.String(), "2 saw 7, 1 saw 8"; got != want || closed(three) {
		t.Errorf("got %q, want %q, and no agreement", got, want)
	}
	tally.Saw(1, 7)
	if !closed(three) {
		t.Error("three who saw 7 do not agree")
	}
}

func TestTallyOfMany(t *testing.T) {
	const n = 100
	tally := NewTally(n)
	all := tally.Agreed(n, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for seen := range n {
				tally.Saw(i, seen+1)
			}
		})
	}
	wg.Wait()
	if !closed(all) {
		t.Error("not told that all agree")
	}
}

package fabric

import (
	"strconv"
	"testing"
)

// TestSeen: the newest 65 536 ids are known, whatever came before, and not twice as many
// and more are kept.
func TestSeen(t *testing.T) {
	var s seen
	has := func(id string) bool {
		_, now := s.now[id]
		_, before := s.before[id]
		return now || before
	}
	const total, newest = 200_000, 65_536
	for i := range total {
		if !s.add(strconv.Itoa(i)) {
			t.Fatalf("%d is not new", i)
		}
		if n := len(s.now) + len(s.before); n > 2*newest {
			t.Fatalf("%d ids are kept", n)
		}
	}
	for i := total - newest; i < total; i++ {
		if !has(strconv.Itoa(i)) {
			t.Fatalf("%d of %d is forgotten", i, total)
		}
	}
	for _, i := range []int{total - newest, total - 1} {
		if s.add(strconv.Itoa(i)) {
			t.Errorf("%d of %d is new again", i, total)
		}
	}
	if has("0") {
		t.Error("the first is still known")
	}
	s.remove(strconv.Itoa(total - 1))
	if has(strconv.Itoa(total - 1)) {
		t.Error("what was removed is still known")
	}
}

// One of the newest ids is known when it comes again, also just before and just after a
// generation is full.
func TestSeenWhereItIsFull(t *testing.T) {
	for _, total := range []int{1, maxSeen - 1, maxSeen, maxSeen + 1, 2*maxSeen - 1, 2 * maxSeen, 2*maxSeen + 1} {
		for _, age := range []int{1, maxSeen / 2, maxSeen} { // of the one that comes again
			if age > total {
				continue
			}
			var s seen
			for i := range total {
				if !s.add(strconv.Itoa(i)) {
					t.Fatalf("%d is not new", i)
				}
			}
			for range 2 {
				if again := total - age; s.add(strconv.Itoa(again)) {
					t.Errorf("after %d, %d is new again", total, again)
				}
			}
			if !s.add(strconv.Itoa(total)) {
				t.Errorf("%d is not new", total)
			}
		}
	}
}

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

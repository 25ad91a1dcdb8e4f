package fabric

import (
	"strconv"
	"testing"
)

// TestSeen: the newest 65 536 ids are known, whatever came before, and not twice as many
// and more are kept.
func TestSeen(t *testing.T) {
	var s seen
	const total, newest = 200_000, 65_536
	for i := range total {
		s.add(strconv.Itoa(i))
		if n := len(s.now) + len(s.before); n > 2*newest {
			t.Fatalf("%d ids are kept", n)
		}
	}
	for i := total - newest; i < total; i++ {
		if !s.has(strconv.Itoa(i)) {
			t.Fatalf("%d of %d is forgotten", i, total)
		}
	}
	if s.has("0") {
		t.Error("the first is still known")
	}
	s.remove(strconv.Itoa(total - 1))
	if s.has(strconv.Itoa(total - 1)) {
		t.Error("what was removed is still known")
	}
}

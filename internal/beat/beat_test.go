package beat

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestIn: the wait ends on a beat, as late as it may, and never later.
func TestIn(t *testing.T) {
	for range 10_000 {
		now := time.Now().Add(rand.N(time.Hour))
		d, every := 1+rand.N(3*time.Second), 1+rand.N(time.Second)
		left := In(now, d, every)
		end := now.Round(0).Add(left)
		switch beat := end.Truncate(every).Equal(end); {
		case left <= 0 || left > d:
			t.Fatalf("In(%v, %v, %v) = %v, is not from 0 to %v", now, d, every, left, d)
		case beat && d-left >= every:
			t.Fatalf("In(%v, %v, %v) = %v: there is a later beat", now, d, every, left)
		case !beat && (left != d || d > every):
			t.Fatalf("In(%v, %v, %v) = %v: that is no beat", now, d, every, left)
		}
	}
}

// TestInAgrees: those who share a clock wait until the same moment.
func TestInAgrees(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 1, time.UTC)
	ends := map[time.Time]int{}
	for i := range 100 {
		now := begin.Add(time.Duration(i) * 997 * time.Microsecond)
		ends[now.Add(In(now, 1500*time.Millisecond, 100*time.Millisecond))]++
	}
	if len(ends) != 1 {
		t.Errorf("a hundred that begin within 0.1 s end at %d moments", len(ends))
	}
}

package roster

import (
	"testing"
	"time"
)

// Who stands by for want of others lets them take the claim and be heard first, and of
// many members each has a moment of its own.
func TestSilence(t *testing.T) {
	for _, c := range []struct {
		members     int
		lease       time.Duration
		first, last time.Duration
	}{
		{40, time.Second, 10 * time.Second, 10040 * time.Millisecond},
		{500, 5 * time.Second, 10500 * time.Millisecond, 12840 * time.Millisecond},
		{1000, 5 * time.Second, 20 * time.Second, 24840 * time.Millisecond},
		{3000, time.Minute, 86 * time.Second, 91 * time.Second},
	} {
		first, last := turnout{}.silence(c.members, c.lease), turnout{late: 1}.silence(c.members, c.lease)
		if first != c.first || last != c.last {
			t.Errorf("%d members with a lease of %v: %v to %v, want %v to %v", c.members, c.lease, first, last, c.first, c.last)
		}
	}
}

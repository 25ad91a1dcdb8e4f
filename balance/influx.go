package balance

import (
	"time"

	"github.com/natsfabric/natsfabric/internal/roster"
)

// An influx is who has just come into the fabric, and since when. Of a crowd that comes into
// the fabric and then into a group, the group sees the first long before the last (ADR 16).
type influx struct {
	last *roster.View
	came map[string]time.Time // by PID
}

// see takes the fabric's view.
func (x *influx) see(v *roster.View, now time.Time) {
	if x.last == nil { // whoever is there has been for an unknown time
		x.last, x.came = v, map[string]time.Time{}
	}
	_, olds, news := roster.Differing(x.last, v)
	x.last = v
	gone := make(map[string]uint64, len(olds))
	for _, m := range olds {
		gone[m.PID] = m.Inc
	}
	for _, m := range news {
		if gone[m.PID] != m.Inc {
			x.came[m.PID] = now
		}
		delete(gone, m.PID)
	}
	for pid := range gone {
		delete(x.came, pid)
	}
}

// coming returns how many came of late that are not in the group, and until when the last of
// them is likely to join.
func (x *influx) coming(now time.Time, in func(pid string) bool) (n int, until time.Time) {
	for pid, came := range x.came {
		switch by := came.Add(roster.Soon); {
		case now.After(by):
			delete(x.came, pid)
		case !in(pid):
			n++
			if by.After(until) {
				until = by
			}
		}
	}
	return n, until
}

package roster

import "time"

// A crowd makes a window longer: both its times are taken once more for each crowdStep who
// came in it, crowdMost times in all. Who comes with many others is likely not the last, and
// each view is work for everyone.
const (
	crowdStep = 16
	crowdMost = 3
)

// A window is the time from the first change that is not in a view until the next view.
// It is told what time it is.
type window struct {
	quiet   time.Duration // how long nothing must change
	ceiling time.Duration // how long it is open at most
	opened  time.Time
	changed time.Time // last
	early   bool      // a tenth of quiet is enough
	crowd   int       // how many times as long both are: what crowd says of those who came
}

// end returns when the window closes if nothing changes until then.
func (w *window) end() time.Time {
	if w.early {
		return w.changed.Add(w.quiet / 10)
	}
	times := time.Duration(w.crowd)
	end, last := w.changed.Add(times*w.quiet), w.opened.Add(times*w.ceiling)
	if last.Before(end) {
		return last
	}
	return end
}

// crowd returns how many times as long as usual a window is in which members came to be
// those given. Once, if somebody is gone: that is not to wait for those who come.
func crowd(before *View, members []*Member) int {
	came := len(members) - len(before.Members)
	if came < crowdStep {
		return 1
	}
	stayed := 0
	for _, m := range members {
		if o, ok := before.Find(m.PID); ok && o.Inc == m.Inc {
			stayed++
		}
	}
	if stayed < len(before.Members) {
		return 1
	}
	return min(1+came/crowdStep, crowdMost)
}

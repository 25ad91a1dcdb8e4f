package roster

import "time"

// A crowd makes a window longer: both its times are taken once more for each crowdStep who
// came in it, crowdMost times in all. Who comes with many others is likely not the last, and
// each view is work for everyone.
const (
	crowdStep = 16
	crowdMost = 3
)

// Soon is for how long somebody of whom a census knows something is likely to be a member.
const Soon = time.Second

// A window is the time from the first change that is not in a view until the next view.
// It is told what time it is.
type window struct {
	quiet   time.Duration // how long nothing must change
	ceiling time.Duration // how long it is open at most
	opened  time.Time
	changed time.Time // last
	calm    bool      // nothing had changed for long: a tenth of quiet is enough, without a crowd
	soon    bool      // it only goes on with what a view began: a tenth is enough
	crowd   int       // how many times as long both are: 1 if there is none
	until   time.Time // before then quiet does not end it: a crowd is still on its way
}

// end returns when the window closes if nothing changes until then.
func (w *window) end() time.Time {
	if w.soon || w.calm && w.crowd == 1 {
		return w.changed.Add(w.quiet / 10)
	}
	times := time.Duration(w.crowd)
	end, last := w.changed.Add(times*w.quiet), w.opened.Add(times*w.ceiling)
	if end.Before(w.until) {
		end = w.until
	}
	if last.Before(end) {
		return last
	}
	return end
}

// wait takes who came since the view before, and who is still to come. There is no crowd if
// somebody is gone: that is not to wait for those who come.
func (w *window) wait(before *View, c *Count) {
	w.crowd, w.until = 1, time.Time{}
	came := len(c.Members) + c.Coming - len(before.Members)
	if came < crowdStep {
		return
	}
	stayed := 0
	for _, m := range c.Members {
		if o, ok := before.Find(m.PID); ok && o.Inc == m.Inc {
			stayed++
		}
	}
	if stayed < len(before.Members) {
		return
	}
	w.crowd = min(1+came/crowdStep, crowdMost)
	if c.Coming >= crowdStep {
		w.until = c.Until
	}
}

package roster

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// An arrival is one member that comes, or goes, or is likely to come within Soon.
type arrival struct {
	at   time.Duration
	pid  string
	gone bool
	near bool
}

// closed is when a view was written in a simulation, and of whom.
type closed struct {
	at     time.Duration
	quiet  time.Duration // since the last change
	waited time.Duration // since the first that it has
	missed time.Duration // since the first of a view's members was gone
}

// views returns what a coordinator with windows of these times writes, of members that come
// and go at these times. It knows each change at once, and a view takes no time.
func views(quiet, ceiling time.Duration, list []arrival) (all []closed) {
	slices.SortStableFunc(list, func(a, b arrival) int { return int(a.at - b.at) })
	start := time.Now()
	base, here, near := &View{}, map[string]*Member{}, map[string]time.Duration{}
	for len(list) > 0 {
		if a := list[0]; a.near { // alone it opens no window
			near[a.pid] = a.at
			list = list[1:]
			continue
		}
		opened, missed := list[0].at, time.Duration(-1)
		w := window{quiet: quiet, ceiling: ceiling, opened: start.Add(opened)}
		var members []*Member
		for len(list) > 0 && (w.changed.IsZero() || !w.end().Before(start.Add(list[0].at))) {
			a := list[0]
			list = list[1:]
			if a.near {
				near[a.pid] = a.at
			} else if a.gone {
				if _, ok := base.Find(a.pid); ok && missed < 0 {
					missed = a.at
				}
				delete(here, a.pid)
			} else {
				here[a.pid] = &Member{PID: a.pid, Inc: uint64(a.at) + 1}
			}
			members = members[:0:0]
			for _, m := range here {
				members = append(members, m)
			}
			c := &Count{Members: members}
			for pid, came := range near {
				if by := came + Soon; here[pid] == nil && by > a.at {
					c.Coming++
					c.Until = later(c.Until, start.Add(by))
				}
			}
			w.changed = start.Add(a.at)
			w.wait(base, c)
		}
		at := w.end().Sub(start)
		if changed := w.changed.Sub(start); at < changed { // somebody is gone, when it had waited long enough
			at = changed
		}
		v := closed{at: at, quiet: at - w.changed.Sub(start), waited: at - opened}
		if missed >= 0 {
			v.missed = at - missed
		}
		all = append(all, v)
		base = base.next(announcement{Epoch: base.Epoch + 1, Set: members, Gone: gone(base, here)})
	}
	return all
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func gone(base *View, here map[string]*Member) (list []Departure) {
	for _, m := range base.Members {
		if here[m.PID] != m {
			list = append(list, Departure{PID: m.PID, Inc: m.Inc})
		}
	}
	return list
}

// batches returns members that come in batches, pause apart, from at on.
func batches(at time.Duration, name string, sizes []int, pause func() time.Duration) (list []arrival) {
	for b, n := range sizes {
		for i := range n {
			list = append(list, arrival{at: at, pid: fmt.Sprint(name, b, "-", i)})
		}
		at += pause()
	}
	return list
}

// seen returns that the members of list are seen to come, so long before each does.
func seen(before time.Duration, list []arrival) (all []arrival) {
	for _, a := range list {
		all = append(all, arrival{at: a.at - before, pid: a.pid, near: true})
	}
	return all
}

func TestWindow(t *testing.T) {
	const quiet, ceiling = 100 * time.Millisecond, time.Second
	every := func(d time.Duration) func() time.Duration { return func() time.Duration { return d } }
	here := batches(0, "h", []int{10}, every(0))
	hundreds := slices.Repeat([]int{100}, 10)
	slow := batches(time.Minute, "a", hundreds[:5], every(400*time.Millisecond))
	others := batches(time.Minute, "o", hundreds[:1], every(0))
	for _, c := range []struct {
		name  string
		list  []arrival
		views int           // with what is here at first
		quiet time.Duration // before the last
	}{
		{"one comes", batches(time.Minute, "a", []int{1}, every(0)), 2, quiet},
		{"fifteen come", batches(time.Minute, "a", []int{15}, every(0)), 2, quiet},
		{"sixteen come", batches(time.Minute, "a", []int{16}, every(0)), 2, 2 * quiet},
		{"a thousand come", batches(time.Minute, "a", []int{1000}, every(0)), 2, 3 * quiet},
		{"a thousand come over two seconds", batches(time.Minute, "a", hundreds, every(200*time.Millisecond)), 2, 3 * quiet},
		{"forty come each quarter of nine seconds", batches(time.Minute, "a", slices.Repeat([]int{40}, 37), every(250*time.Millisecond)), 4, 3 * quiet},
		{"few come, again and again", batches(time.Minute, "a", slices.Repeat([]int{1}, 15), every(90*time.Millisecond)), 3, quiet},
		{"five hundred come, with longer pauses", slow, 6, 3 * quiet},
		{"five hundred come, with longer pauses, and are seen before", append(seen(500*time.Millisecond, slow), slow...), 2, 3 * quiet},
		{"one comes, and fifteen are seen that do not", append(seen(0, others[:15]), batches(time.Minute, "a", []int{1}, every(0))...), 2, 2 * quiet},
		{"one comes, and sixteen are seen that do not", append(seen(0, others[:16]), batches(time.Minute, "a", []int{1}, every(0))...), 2, Soon},
		{"one goes, and a crowd is seen that does not come", append(seen(0, others), arrival{at: time.Minute, pid: "h0-3", gone: true}), 2, quiet},
		{"one goes while a crowd comes", append(batches(time.Minute, "a", hundreds, every(200*time.Millisecond)),
			arrival{time.Minute + 450*time.Millisecond, "h0-3", true, false}), 3, 3 * quiet},
		{"one goes after a crowd came for longer than a ceiling", append(batches(time.Minute, "a", hundreds, every(200*time.Millisecond)),
			arrival{time.Minute + 1350*time.Millisecond, "h0-3", true, false}), 3, 3 * quiet},
	} {
		all := views(quiet, ceiling, append(slices.Clone(here), c.list...))
		missed := slices.MaxFunc(all, func(a, b closed) int { return cmp.Compare(a.missed, b.missed) }).missed
		if len(all) != c.views || all[len(all)-1].quiet != c.quiet || missed > quiet {
			t.Errorf("%s: views %+v, want %d, the last %v after the last change, and one without a member after %v", c.name, all, c.views, c.quiet, quiet)
		}
	}
}

// TestWindowShort: a tenth of the quiet time is enough for the first change after a calm if
// nobody else is likely to come, and always for what a view began.
func TestWindowShort(t *testing.T) {
	const quiet, ceiling = 100 * time.Millisecond, time.Second
	now := time.Now()
	for _, c := range []struct {
		calm, soon bool
		coming     int
		want       time.Duration
	}{
		{false, false, 0, quiet},
		{true, false, 0, quiet / 10},
		{true, false, crowdStep, Soon},
		{false, true, 0, quiet / 10},
		{false, true, crowdStep, quiet / 10},
	} {
		w := window{quiet: quiet, ceiling: ceiling, opened: now, changed: now, calm: c.calm, soon: c.soon}
		w.wait(&View{}, &Count{Members: []*Member{{PID: "a", Inc: 1}}, Coming: c.coming, Until: now.Add(Soon)})
		if got := w.end().Sub(now); got != c.want {
			t.Errorf("%+v: a window of %v", c, got)
		}
	}
}

// TestWindowBounds: whoever comes and goes, no view waits for more than three times the quiet
// time after the last change, or for those likely to come, and three ceilings in all, and one
// that somebody is missed in for no longer than one ceiling.
func TestWindowBounds(t *testing.T) {
	const quiet, ceiling = 100 * time.Millisecond, time.Second
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 7))
		var list []arrival
		likely := time.Duration(seed%2) * Soon
		at, apart := time.Duration(0), float64(1+r.IntN(60))*float64(time.Millisecond)
		for i := range 30 + r.IntN(400) {
			at += time.Duration(r.ExpFloat64() * apart)
			pid := fmt.Sprint("m", i)
			list = append(list, arrival{at: at, pid: pid})
			if likely > 0 {
				list = append(list, arrival{at: at - time.Duration(r.Int64N(int64(2*Soon))), pid: pid, near: true})
			}
			if r.IntN(50) == 0 {
				list = append(list, arrival{at + time.Duration(r.Int64N(int64(3*time.Second))), pid, true, false})
			}
		}
		for _, v := range views(quiet, ceiling, list) {
			if v.waited > crowdMost*ceiling || v.quiet > max(crowdMost*quiet, likely) || v.missed > ceiling {
				t.Fatalf("seed %d: a view %+v", seed, v)
			}
		}
	}
}

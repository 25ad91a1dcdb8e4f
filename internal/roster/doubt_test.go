package roster

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A suspicion test is a script of what a coordinator sees of the member "a" of many.
func TestDoubts(t *testing.T) {
	id := incarnation{"a", 7}
	type step struct {
		at   time.Duration
		do   func(*doubts, time.Time)
		want doubtState
	}
	see := func(s Sign) func(*doubts, time.Time) {
		return func(d *doubts, now time.Time) { d.see(now, id, s, 100) }
	}
	asked := func(f finding) func(*doubts, time.Time) {
		return func(d *doubts, now time.Time) {
			if ask, _ := d.due(now); len(ask) == 1 && ask[0] == id {
				d.found(now, id, f)
			}
		}
	}
	renewed := func(d *doubts, now time.Time) { d.renewed(now, id) }
	hold := func(d *doubts, now time.Time) { d.hold(now, time.Second) }
	const ms = time.Millisecond
	for _, test := range []struct {
		name  string
		steps []step
	}{
		{"its connection is closed", []step{
			{0, see(Closed), inDoubt}, {19 * ms, asked(nobody), inDoubt}, {20 * ms, asked(nobody), suspected},
			{99 * ms, asked(nobody), suspected}, {100 * ms, asked(nobody), failed}}},
		{"the server closed it", []step{
			{0, see(Dropped), inDoubt}, {20 * ms, asked(nobody), suspected}, {2019 * ms, asked(nobody), suspected}, {2020 * ms, asked(nobody), failed}}},
		{"nobody took a message", []step{
			{0, see(Unheard), inDoubt}, {0, asked(nobody), suspected}, {249 * ms, asked(nobody), suspected}, {250 * ms, asked(nobody), failed}}},
		{"it is there", []step{
			{0, see(Closed), inDoubt}, {20 * ms, asked(somebody), inDoubt}, {100 * ms, asked(somebody), trusted},
			{900 * ms, see(Unheard), trusted}, {1100 * ms, see(Unheard), inDoubt}, {1100 * ms, asked(somebody), trusted}}},
		{"the server has not noticed yet", []step{
			{0, see(Closed), inDoubt}, {20 * ms, asked(somebody), inDoubt}, {100 * ms, asked(nobody), suspected}, {180 * ms, asked(nobody), failed}}},
		{"it comes back in time", []step{
			{0, see(Closed), inDoubt}, {20 * ms, asked(nobody), suspected}, {100 * ms, asked(somebody), trusted}}},
		{"a renewal under way when it ended", []step{
			{0, see(Closed), inDoubt}, {1 * ms, renewed, inDoubt}, {20 * ms, asked(nobody), suspected}, {21 * ms, renewed, suspected}, {100 * ms, asked(nobody), failed}}},
		{"it was wronged", []step{
			{0, see(Unheard), inDoubt}, {0, asked(nobody), suspected}, {250 * ms, asked(nobody), failed}, {251 * ms, see(Closed), failed},
			{time.Second, renewed, failed}, {time.Second, asked(somebody), trusted},
			{60 * time.Second, see(Closed), trusted}, {61 * time.Second, see(Closed), inDoubt}}},
		{"it was wronged, and cannot be asked for", []step{
			{0, see(Unheard), inDoubt}, {0, asked(nobody), suspected}, {250 * ms, asked(nobody), failed},
			{time.Second, renewed, failed}, {time.Second, asked(unclear), failed}, {2 * time.Second, renewed, trusted}}},
		{"a renewal that comes very late", []step{
			{0, see(Closed), inDoubt}, {20 * ms, asked(nobody), suspected}, {100 * ms, asked(nobody), failed},
			{400 * ms, renewed, failed}, {400 * ms, asked(nobody), failed}}},
		{"the coordinator reconnects", []step{
			{0, see(Closed), inDoubt}, {20 * ms, asked(nobody), suspected}, {30 * ms, hold, toLease}, {100 * ms, asked(nobody), toLease},
			{500 * ms, see(Closed), toLease}, {2 * time.Second, renewed, trusted}}},
		{"a sign while it reconnects", []step{
			{0, hold, trusted}, {999 * ms, see(Closed), trusted}, {time.Second, see(Closed), inDoubt}}},
		{"it cannot be asked for", []step{
			{0, see(Closed), inDoubt}, {20 * ms, asked(unclear), trusted}, {30 * ms, see(Closed), inDoubt}, {50 * ms, asked(nobody), suspected},
			{130 * ms, asked(unclear), toLease}}},
		{"it is over by the records", []step{
			{0, see(Closed), inDoubt}, {20 * ms, asked(nobody), suspected}, {30 * ms, func(d *doubts, _ time.Time) { d.forget("a", 8) }, trusted}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, began := newDoubts(), time.Unix(1000, 0)
			for i, s := range test.steps {
				s.do(d, began.Add(s.at))
				got := trusted
				if x := d.of[id]; x != nil {
					got = x.state
				}
				if got != s.want {
					t.Fatalf("after step %d, at %v: state %d, want %d", i, s.at, got, s.want)
				}
			}
		})
	}
}

// A life is a process in the simulation.
type life struct {
	id      incarnation
	alive   bool
	there   bool // connected
	died    time.Time
	renewed time.Time
	back    time.Time // when it is connected again
	unjust  int       // renewals while it was held to have failed
}

// TestDoubtsSimulated: whatever happens to the processes and in whatever order it is
// seen, nobody who is there all the time is suspected; nobody fails who was not asked
// for twice, as far apart as its sign demands; more than the brake allows never fail
// within its time; who was wronged is back when it has renewed twice, at the latest, and
// no dead one is, although its last renewal may come late.
func TestDoubtsSimulated(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	fails := 0
	for run := range natstest.Fewer(60) {
		fails += simulateDoubts(t, rand.New(rand.NewPCG(seed, uint64(run))))
	}
	if fails == 0 {
		t.Error("nobody ever failed")
	}
	t.Logf("%d failed", fails)
}

func simulateDoubts(t *testing.T, r *rand.Rand) (failed int) {
	const step = 5 * time.Millisecond
	members := 1 + r.IntN(60)
	lives := map[string]*life{}
	now := time.Unix(1_000_000, 0)
	for i := range members {
		id := incarnation{string(rune('A' + i)), uint64(i + 1)}
		lives[id.pid] = &life{id: id, alive: true, there: true, renewed: now.Add(-time.Duration(r.IntN(1667)) * time.Millisecond)}
	}
	d := newDoubts()
	type pending struct {
		at time.Time
		f  func()
	}
	var queue []pending
	later := func(most time.Duration, f func()) {
		queue = append(queue, pending{now.Add(time.Duration(r.Int64N(int64(most) + 1))), f})
	}
	misses := map[incarnation][]time.Time{} // when nobody was found
	var fails []time.Time
	crowd := r.IntN(3) == 0 // many vanish at once
	for range 4000 {
		now = now.Add(step)
		for _, l := range lives {
			if l.alive && l.there && now.Sub(l.renewed) > 1667*time.Millisecond {
				l.renewed = now
				later(400*time.Millisecond, func() {
					if d.failed(l.id) != 0 {
						l.unjust++
					} else {
						l.unjust = 0
					}
					d.renewed(now, l.id)
					switch {
					case l.unjust > 1 && d.failed(l.id) != 0:
						t.Fatalf("%v renewed twice and is held to have failed", l.id)
					case l.unjust == 1 && !l.alive && d.failed(l.id) == 0: // two show that it lived on
						t.Fatalf("%v is dead and was cleared", l.id)
					}
				})
			}
			if l.alive && !l.there && !now.Before(l.back) {
				l.there = true
			}
		}
		vanish := 0
		if r.IntN(400) == 0 {
			vanish = 1
			if crowd {
				vanish = 1 + r.IntN(members)
			}
		}
		for _, l := range lives {
			if vanish == 0 {
				break
			}
			if !l.alive || !l.there {
				continue
			}
			vanish--
			l.there = false
			l.back = now.Add(time.Duration(r.IntN(4000)) * time.Millisecond)
			if r.IntN(2) == 0 {
				l.alive, l.died = false, now
			}
			s := Sign(1 + r.IntN(int(signs)-1))
			later(15*time.Millisecond, func() { d.see(now, l.id, s, members) })
		}
		if r.IntN(3000) == 0 {
			d.hold(now, reconnecting)
		}
		if r.IntN(50) == 0 { // a lie
			for _, l := range lives {
				d.see(now, l.id, Unheard, members)
				break
			}
		}
		rest := queue[:0]
		due := []pending{}
		for _, p := range queue {
			if p.at.After(now) {
				rest = append(rest, p)
			} else {
				due = append(due, p)
			}
		}
		queue = rest
		for _, p := range due {
			p.f()
		}
		ask, _ := d.due(now)
		for _, id := range ask {
			l := lives[id.pid]
			later(10*time.Millisecond, func() {
				f, was := nobody, d.failed(id)
				switch {
				case r.IntN(50) == 0:
					f = unclear
				case l.alive && l.there:
					f = somebody
				}
				sign := Sign(0)
				if x := d.of[id]; x != nil {
					sign = x.sign
				}
				d.found(now, id, f)
				if f == nobody {
					misses[id] = append(misses[id], now)
				} else if f == somebody {
					misses[id] = nil
				}
				if was != 0 && d.failed(id) == 0 && f != somebody {
					t.Fatalf("%v was cleared, having not been found", id)
				}
				if was == 0 && d.failed(id) != 0 {
					m := misses[id]
					if len(m) < 2 || m[len(m)-1].Sub(m[len(m)-2]) < ladder[sign].second {
						t.Fatalf("%v failed by %d, having been missed at %v", id, sign, m)
					}
					if now.Before(d.shy) {
						t.Fatalf("%v failed while no sign counts", id)
					}
					fails = append(fails, now)
				}
			})
		}
		for pid, inc := range d.suspects() {
			if l := lives[pid]; l.alive && l.there && now.Sub(l.back) > 5*time.Second {
				t.Fatalf("%s %d is suspected %v after it came back", pid, inc, now.Sub(l.back))
			}
		}
	}
	for i := range fails {
		within := 0
		for _, at := range fails[i:] {
			if at.Sub(fails[i]) < ladder[Closed].second {
				within++
			}
		}
		// As many signs as the brake allows may have come in either of the seconds
		// that these began in.
		if limit := 2 * max(brakeCount, members/brakeShare); within > limit {
			t.Fatalf("%d of %d failed within %v, want at most %d", within, members, ladder[Closed].second, limit)
		}
	}
	return len(fails)
}

// Who dies while nothing else happens has failed within the ladder's time.
func TestDoubtsFindTheDead(t *testing.T) {
	for s := Closed; s < signs; s++ {
		d, now := newDoubts(), time.Unix(1000, 0)
		id := incarnation{"a", 1}
		d.see(now, id, s, 10)
		end := now.Add(ladder[s].first + ladder[s].second)
		for d.failed(id) == 0 && !now.After(end) {
			ask, next := d.due(now)
			switch {
			case len(ask) == 1:
				d.found(now, id, nobody)
			case next.After(now):
				now = next
			default:
				t.Fatalf("sign %d: nothing is due at %v", s, now)
			}
		}
		if d.failed(id) != s || len(d.suspects()) != 0 {
			t.Errorf("sign %d: failed(%v) = %d after %v", s, id, d.failed(id), end)
		}
	}
}

// Of many that vanish within a second none fails before its lease.
func TestDoubtsBrake(t *testing.T) {
	for members, limit := range map[int]int{5: 3, 39: 3, 40: 4, 1000: 100} {
		for n := limit; n <= limit+1; n++ {
			d, now := newDoubts(), time.Unix(1000, 0)
			ids := make([]incarnation, n)
			for i := range ids {
				ids[i] = incarnation{string(rune('a' + i)), 1}
				d.see(now.Add(time.Duration(i)*10*time.Millisecond/time.Duration(n)), ids[i], Closed, members)
			}
			for range 60 {
				now = now.Add(5 * time.Millisecond)
				ask, _ := d.due(now)
				for _, id := range ask {
					d.found(now, id, nobody)
				}
			}
			count := 0
			for _, id := range ids {
				if d.failed(id) != 0 {
					count++
				}
			}
			want := n
			if n > limit {
				want = 0
			}
			if count != want {
				t.Errorf("of %d members %d vanish: %d failed, want %d", members, n, count, want)
			}
		}
	}
}

package lease_test

import (
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// What happens to processes, to the server and to the bucket.

const (
	// simCalm is how long nothing happens before the bucket is lost or rolled back,
	// which is assumed not to happen while a holder is cut off, or a process that has
	// seen nothing of the bucket is started: long enough that pings have found every dead
	// connection.
	simCalm = 6 * time.Second
	// simHealing is how long after the last fault what was forged on the feed is
	// forgotten, and leaderBound how long after that somebody leads: a crash or a
	// suspension may be as young as that.
	simHealing  = 3 * kv.Reread
	leaderBound = 10 * time.Second
)

// nemesis does things until there were enough faults, and returns the moments by which
// everything had healed.
func (w *simWorld) nemesis(faults int) (healed []time.Time) {
	for n := 1; w.s.struck() < faults; n++ {
		w.s.setStorm(0.5 + 0.5*w.rand.Float64())
		for range 80 {
			time.Sleep(w.between(100*time.Millisecond, 4*time.Second))
			w.strike()
		}
		w.heal()
		if n%2 == 0 {
			w.quiet.Store(true)
			time.Sleep(2*simLongest + simCalm) // and who is about to join has
			if w.rand.IntN(2) == 0 {
				w.s.lose()
			} else {
				w.s.rollBack(w.between(simLongest, 15*time.Second))
			}
			time.Sleep(simLongest + simCalm)
			w.quiet.Store(false)
		}
		time.Sleep(simHealing)
		healed = append(healed, time.Now())
		time.Sleep(leaderBound)
	}
	return healed
}

// heal ends every fault.
func (w *simWorld) heal() {
	w.s.setStorm(0)
	w.s.mu.Lock()
	w.s.down = false
	ways := w.s.ways
	w.s.mu.Unlock()
	for _, y := range ways {
		y.set(true, true, false)
	}
}

func (w *simWorld) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rand.Int64N(int64(high-low)))
}

// strike does one thing, to a leader more often than not.
func (w *simWorld) strike() {
	p := w.pick()
	if w.rand.IntN(3) > 0 {
		p = w.leader()
	}
	y, lose := p.way, w.rand.IntN(2) == 0
	mend := func(low, high time.Duration) {
		time.AfterFunc(w.between(low, high), func() { y.set(true, true, lose) })
	}
	switch n := w.rand.IntN(100); {
	case n < 12:
		w.s.count("cut")
		y.set(false, false, false)
		mend(100*time.Millisecond, 2*simLongest)
	case n < 22:
		w.s.count("answers cut")
		y.set(true, false, false)
		mend(100*time.Millisecond, 2*simLongest)
	case n < 32: // a renewal waits in the network until the lease has run out, and arrives
		w.s.count("requests late")
		lose = false
		y.set(false, false, false)
		mend(simShortest*9/10, simLongest*11/10)
	case n < 40:
		w.s.count("connection killed")
		y.kill()
	case n < 50:
		w.s.count("crash")
		y.set(false, false, lose)
		p.crash()
		mend(0, 2*simLongest)
	case n < 60:
		w.suspend(p)
	case n < 63:
		w.s.restart(0)
	case n < 66:
		w.s.restart(w.between(500*time.Millisecond, 2*simLongest))
	case n < 76:
		w.s.vanish(lease.KeySession(p.pid))
	case n < 80:
		w.s.foreign(lease.KeySession(p.pid))
	default:
		keys := []string{lease.KeySession(p.pid), lease.KeyPID(p.pid), lease.KeyElection("x"), lease.KeyElection("y")}
		w.s.forge(keys[w.rand.IntN(len(keys))])
	}
}

// suspend lets the machine of a process sleep: nothing passes, its timers do not count
// the time, and nothing that it holds for less is valid when it wakes.
func (w *simWorld) suspend(p *simProc) {
	d := w.between(0, 3*simLongest)
	if w.rand.IntN(4) == 0 {
		d = time.Hour
	}
	w.s.count("suspended")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asleep.Add(int64(d))
	for g := range p.grants {
		if d >= simLongest && g.Valid() {
			w.t.Errorf("%s: term %d is valid after a suspension of %v", p.pid, g.Term, d)
		}
	}
}

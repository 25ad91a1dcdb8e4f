package roster_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// A desk hands on what is asked of JetStream under the domain "desk", and counts and
// withholds what is about the view.
type desk struct {
	reads        atomic.Int64 // of the view
	silent, down atomic.Bool  // the view is not answered for, or with an error
	writeless    atomic.Bool  // the view is not written
}

func newDesk(t *testing.T, s *natstest.Server) *desk {
	d := new(desk)
	s.Desk(func(m *nats.Msg) bool {
		if strings.Contains(m.Subject, "STREAM.MSG.GET") && bytes.Contains(m.Data, []byte(`.v.x"`)) {
			d.reads.Add(1)
			switch {
			case d.silent.Load():
				return true
			case d.down.Load():
				m.Respond([]byte(`{"error":{"code":503,"err_code":10008,"description":"temporarily unavailable"}}`))
				return true
			}
		}
		return d.writeless.Load() && strings.HasSuffix(m.Subject, ".v.x")
	})
	return d
}

func atDesk(p *part) { p.domain = natstest.DeskDomain }

// Who missed one announcement has its view with the next beacon, and needs nobody to
// answer for that. A step that is announced again is no news.
func TestMissedStepComesAgain(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h, d := &hall{ears: map[int]func(string, []byte){}}, newDesk(t, s)
		a, b := take(t, s, h, "a", true), take(t, s, h, "b", false, atDesk)
		a.wants.Store(named("a"))
		b.until(t, 1)
		d.silent.Store(true)
		h.hush(true)
		a.wants.Store(named("a", "b"))
		a.until(t, 2)
		h.hush(false)
		began := time.Now()
		b.until(t, 2)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the view came after %v, want two beacons", took)
		}
		if n := d.reads.Load(); n > 1 {
			t.Errorf("%d reads, want only the first", n)
		}
		_, changed := b.View()
		select {
		case <-changed:
			t.Error("another view, after a beacon without news")
		case <-time.After(30 * time.Second):
		}
	})
}

// Whoever coordinates is heard within 5 s of a change, and then as often among few, and more
// seldom among many.
func TestBeaconsOfMany(t *testing.T) {
	for _, c := range []struct {
		members int
		every   time.Duration
	}{{10, 5 * time.Second}, {1000, 10 * time.Second}} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			h, said := &hall{ears: map[int]func(string, []byte){}}, make(chan time.Time, 100)
			stop, err := (&seat{h: h}).OnSignal("", func(string, []byte) { said <- time.Now() })
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			var all []string
			for i := range c.members {
				all = append(all, fmt.Sprint(i))
			}
			a := take(t, s, h, "a", true)
			a.wants.Store(named(all...))
			a.until(t, c.members)
			last := <-said // of the change
			if gap := (<-said).Sub(last); gap > 5*time.Second {
				t.Errorf("%d members heard nothing for %v after a change", c.members, gap)
			}
			last = <-said
			for range 5 {
				now := <-said
				if gap := now.Sub(last).Round(time.Second); gap != c.every {
					t.Errorf("%d members heard a beacon after %v, want %v", c.members, gap, c.every)
				}
				last = now
			}
		})
	}
}

// Followers of a large view do not all read it at once, and not at all if they hear
// meanwhile what it is.
func TestFollowersOfManyDoNotReadAtOnce(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h, d := &hall{ears: map[int]func(string, []byte){}}, newDesk(t, s)
		a := take(t, s, h, "a", true)
		var all []string
		for i := range 1003 {
			all = append(all, fmt.Sprint(i))
		}
		a.wants.Store(named(all[:1000]...))
		a.until(t, 1000)
		var followers []*part
		for i := range 20 {
			b := take(t, s, h, fmt.Sprint("f", i), false, atDesk)
			b.until(t, 1000)
			followers = append(followers, b)
		}

		before := d.reads.Load()
		for _, b := range followers {
			b.session.Bucket().Nudge()
		}
		a.wants.Store(named(all[:1001]...))
		<-time.After(2 * time.Second)
		if n := d.reads.Load() - before; n > 8 {
			t.Errorf("%d of 20 followers read a view of which they hear within 50 ms", n)
		}

		h.hush(true)
		a.wants.Store(named(all[:1002]...))
		a.until(t, 1002)
		h.hush(false)
		before = d.reads.Load()
		a.wants.Store(named(all...))
		a.until(t, 1003)
		began := time.Now()
		<-time.After(100 * time.Millisecond)
		if n := d.reads.Load() - before; n > 8 {
			t.Errorf("%d of 20 followers read within 100 ms after a gap", n)
		}
		for _, b := range followers {
			b.until(t, 1003)
		}
		if took := time.Since(began); took > 1100*time.Millisecond {
			t.Errorf("the view was read after %v, want a second", took)
		}
	})
}

// A view that was announced and is nowhere is not looked for without end, however often
// reads had failed before.
func TestForgedViewIsNotLookedForForEver(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		h, d := &hall{ears: map[int]func(string, []byte){}}, newDesk(t, s)
		a, b := take(t, s, h, "a", true), take(t, s, h, "b", false, atDesk)
		a.wants.Store(named("a"))
		v := b.until(t, 1)
		a.Close()
		forger := &seat{h: h, pid: "c"}
		d.down.Store(true)
		for range 2 {
			forger.Signal("view-x", roster.Named("c", 99, v.Token))
			<-time.After(30 * time.Second)
		}
		d.down.Store(false)
		<-time.After(10 * time.Second)
		before := d.reads.Load()
		<-time.After(time.Minute)
		if n := d.reads.Load() - before; n > 10 {
			t.Errorf("%d reads in a minute, want one each 10 s or more", n)
		}
	})
}

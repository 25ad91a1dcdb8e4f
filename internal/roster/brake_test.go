package roster

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// The brake is a share of those who are here: PIDs that ended long ago, whose claims are
// still read, do not loosen it.
func TestBrakeCountsWhoIsHere(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) { // all signs come at one moment
		for held, limit := range map[int]int{5: 3, 40: 4} {
			for n := limit; n <= limit+1; n++ {
				c := &living{
					Survey: Survey{Session: new(lease.Session), Logger: slog.New(slog.DiscardHandler)},
					people: map[string]*person{}, doubts: newDoubts(),
				}
				var ids []incarnation
				for i := range held + 400 {
					id := incarnation{fmt.Sprint("p", i), uint64(i + 1)}
					p := &person{inc: id.inc, held: i < held, left: i >= held, member: &Member{PID: id.pid, Inc: id.inc}}
					c.people[id.pid] = p
					ids = append(ids, id)
				}
				c.people["young"] = &person{inc: 9999, held: true, member: &absent} // its session was not seen
				if got := len(c.members()); got != held {
					t.Fatalf("%d members, want %d", got, held)
				}
				for _, id := range ids[:n] {
					c.consider(report{incarnation: id, sign: Unheard})
				}
				count := 0
				for _, id := range ids[:n] {
					if x := c.doubts.of[id]; x != nil && x.state == inDoubt {
						count++
					}
				}
				if want := map[bool]int{true: n, false: 0}[n == limit]; count != want {
					t.Errorf("of %d members there are signs of %d: %d in doubt, want %d", held, n, count, want)
				}
			}
		}
	})
}

// Many signs of one member are one: they do not keep the brake on.
func TestBrakeCountsEachOnce(t *testing.T) {
	d, began := newDoubts(), time.Unix(1000, 0)
	id := incarnation{"a", 1}
	d.hold(began, brakeTime)
	for i := range 40 {
		now := began.Add(time.Duration(i) * 250 * time.Millisecond)
		d.see(now, id, Unheard, 5)
		if got, want := d.of[id] != nil, !now.Before(began.Add(brakeTime)); got != want {
			t.Fatalf("%v after the brake: in doubt is %v, want %v", now.Sub(began), got, want)
		}
	}
	d.forget("a", 2)
	now := began.Add(10 * time.Second)
	for i := range 3 { // with the one above
		now = now.Add(10 * time.Millisecond)
		d.see(now, incarnation{string(rune('b' + i)), 1}, Unheard, 5)
	}
	if len(d.of) != 3 {
		t.Errorf("%d in doubt of three others, want all", len(d.of))
	}
}

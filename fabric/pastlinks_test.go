package fabric

import (
	"fmt"
	"testing"
	"time"
)

// TestPastLinks: a link that is over is remembered for linkIdle after it was last asked
// for, at least, and is forgotten then; not while nobody can be heard.
func TestPastLinks(t *testing.T) {
	var p pastLinks
	now := time.Now()
	pass := func(d time.Duration, connected bool) {
		for end := now.Add(d); now.Before(end); {
			now = now.Add(expireEvery)
			p.expire(now, connected)
		}
	}
	pass(time.Minute, true)
	p.add(&inLink{name: "asked"})
	p.add(&inLink{name: "left"})
	for range 5 {
		pass(linkIdle-expireEvery, true)
		if p.named("asked") == nil {
			t.Fatal("forgotten, although it was asked for")
		}
	}
	if p.named("left") != nil {
		t.Error("not forgotten")
	}
	pass(time.Hour, false)
	if p.named("asked") == nil {
		t.Error("forgotten while nobody could ask")
	}
	pass(3*linkIdle, true)
	if n := len(p.young) + len(p.old); n != 0 {
		t.Errorf("%d links are never forgotten", n)
	}
	for i := range 3 * maxPast {
		p.add(&inLink{name: fmt.Sprint(i)})
	}
	if n := len(p.young) + len(p.old); n > 2*maxPast {
		t.Errorf("%d links are remembered", n)
	}
	if p.named(fmt.Sprint(2*maxPast)) == nil {
		t.Error("one of the last that ended is forgotten")
	}
}

package fabric

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
)

// TestDenialsAreBounded: each stranger may want its answer where the node may not publish.
func TestDenialsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &link{denied: map[string]denial{}}
		deny := func(subject string) {
			l.asyncError(nil, fmt.Errorf("%w: Permissions Violation for Publish to %q", nats.ErrPermissionViolation, subject))
		}
		deny("first")
		for i := range 10 * maxDenied {
			if i%maxDenied == 0 {
				time.Sleep(denialHolds)
			}
			deny(fmt.Sprint("_INBOX.", i))
		}
		deny("last")
		if n := len(l.denied); n > maxDenied {
			t.Errorf("%d denials are kept, want at most %d", n, maxDenied)
		}
		if d, ok := l.denied["last"]; !ok || d.op != "publish" {
			t.Errorf("the last denial is %v, %t", d, ok)
		}
		if l.first == nil || l.first.Subject != "first" {
			t.Errorf("the first denial is %v", l.first)
		}
	})
}

// TestSeldom: what happens all the time is acted on once a second, and after the last.
func TestSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s seldom
		var calls []int
		for i := range 2500 {
			s.again(func() { calls = append(calls, i) })
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(calls) != 4 || calls[0] != 0 || calls[3] != 2499 {
			t.Errorf("called with %v, want the first, one each second, and the last", calls)
		}
		s.again(func() { calls = nil })
		if calls != nil {
			t.Error("not called at once after a pause")
		}
	})
}

// TestTapsAreKnown: a tap that is not read in time makes nobody read the bucket again.
func TestTapsAreKnown(t *testing.T) {
	s := newSubjects("c", "e", "a")
	for class, tap := range tapped {
		if !s.isTap(s.prefix + tap) {
			t.Errorf("the tap of class %s is not known", class)
		}
	}
	for _, subject := range []string{s.feed() + ".s.*", s.feed() + ".c.p.*", s.signalAll("view-members"), "kv.>"} {
		if s.isTap(subject) {
			t.Errorf("%s is no tap's", subject)
		}
	}
}

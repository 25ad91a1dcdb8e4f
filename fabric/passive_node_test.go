package fabric_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A changeLog is what a reader of Changes was told, in order.
type changeLog struct {
	mu    sync.Mutex // guards the field below
	lines []string
}

func logChanges(n *fabric.Node) *changeLog {
	l := new(changeLog)
	go func() {
		for c, err := range n.Changes(context.Background()) {
			if err != nil {
				return
			}
			l.mu.Lock()
			l.lines = append(l.lines, fmt.Sprint(c.Kind, " ", c.Member.PID))
			l.mu.Unlock()
		}
	}()
	return l
}

// take returns what was told since the last time.
func (l *changeLog) take() string {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := fmt.Sprint(l.lines)
	l.lines = nil
	return lines
}

// TestPassiveWatchesADeadFabric: who is over is seen neither to come nor to go, however
// often the view is read again; who comes then is seen.
func TestPassiveWatchesADeadFabric(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		b, lb := joinLink(t, s, "b")
		await(t, a, "a", "b")
		await(t, b, "a", "b")
		crash(a, la)
		crash(b, lb)
		time.Sleep(2*ttl + time.Second)
		p, link := joinLink(t, s, "p", func(c *fabric.Config) { c.Passive = true })
		told := logChanges(p)
		if got, want := told.take(), fmt.Sprintf("[%v ]", fabric.Synced); got != want {
			t.Errorf("told %v at first, want %v", got, want)
		}
		time.Sleep(2 * time.Minute)
		if got := told.take(); got != "[]" {
			t.Errorf("told %v of a dead fabric", got)
		}
		for range 5 {
			link.Cut()
			link.Kill()
			time.Sleep(time.Second)
			link.Heal()
			for range 300 {
				time.Sleep(10 * time.Millisecond)
				if n := len(p.View().Members); n != 0 {
					t.Fatalf("%d members after the connection was away", n)
				}
			}
			time.Sleep(30 * time.Second)
			if got := told.take(); got != "[]" {
				t.Errorf("told %v of a dead fabric when the connection was away", got)
			}
		}
		join(t, s, "c")
		await(t, p, "c") // whose first views have a and b until it has ended them
	})
}

// TestPassiveSeesMembersComeBack: members that were cut off for long are seen to have failed
// once, and to be there again when they are heard.
func TestPassiveSeesMembersComeBack(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		b, lb := joinLink(t, s, "b")
		await(t, a, "a", "b")
		await(t, b, "a", "b")
		p := join(t, s, "p", func(c *fabric.Config) { c.Passive = true })
		told := logChanges(p)
		told.take()
		la.Cut()
		lb.Cut()
		time.Sleep(2 * time.Minute)
		if got, want := told.take(), fmt.Sprintf("[%[1]v a %[1]v b]", fabric.Failed); got != want {
			t.Errorf("told %v when they were cut off, want %v", got, want)
		}
		la.Heal()
		lb.Heal()
		await(t, p, "a", "b")
		await(t, a, "a", "b")
		time.Sleep(time.Minute)
		if got, want := told.take(), fmt.Sprintf("[%[1]v a %[1]v b]", fabric.Joined); got != want {
			t.Errorf("told %v when they came back, want %v", got, want)
		}
	})
}

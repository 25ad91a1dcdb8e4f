//go:build unix

package tests

import (
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

// The checker finds what it is there for.
func TestNemesisChecker(t *testing.T) {
	term := func(pid string, at int64, number, token uint64) record {
		return record{Kind: "term", PID: fabric.PID(pid), At: at, Term: number, Token: token}
	}
	believes := func(at int64, token uint64) record { return record{Kind: "believes", At: at, Token: token} }
	holds := func(at int64, token uint64) record {
		return record{Kind: "holds", N: 3, At: at, Done: at + 1, Token: token}
	}
	got := func(n uint64) record { return record{Kind: "got", PID: "a", Run: "r", N: n} }
	sent := func(n uint64) record { return record{Kind: "sent", PID: "b", Run: "r", N: n, OK: true} }
	linkGot := func(at int64, n uint64) record {
		return record{Kind: "got", At: at * time.Second.Nanoseconds(), PID: "a", Run: "r" + reliableRun, N: n}
	}
	gap := []record{linkGot(1, 1), linkGot(2, 3), linkGot(4, 4)}
	lost := record{Kind: "lost", PID: "b", Run: "r" + reliableRun, N: 2}
	frozen := []window{{"pause-server", 0, 9 * time.Second.Nanoseconds()}}
	elsewhere := holds(9, 10)
	elsewhere.N = 4
	for name, tt := range map[string]struct {
		records []record
		by      string
		ok      bool
		windows []window
	}{
		"terms in turn":                        {[]record{term("a", 1, 1, 10), believes(2, 10), term("b", 3, 2, 20), believes(4, 20)}, "a#1", true, nil},
		"two believers":                        {[]record{term("a", 1, 1, 10), term("b", 3, 2, 20), believes(4, 10)}, "a#1", false, nil},
		"checked before":                       {[]record{term("a", 1, 1, 10), term("b", 3, 2, 20), believes(3, 10)}, "a#1", true, nil},
		"a token twice":                        {[]record{term("a", 1, 1, 10), term("b", 3, 2, 10)}, "a#1", false, nil},
		"a token that fell":                    {[]record{term("a", 1, 3, 10), term("b", 3, 2, 20)}, "a#1", false, nil},
		"a new bucket":                         {[]record{term("a", 1, 3, 10), term("b", 3, 1, 20)}, "a#1", true, []window{{kind: "bucket-deleted"}}},
		"in order with a gap":                  {[]record{got(1), got(3)}, "b#1", true, nil},
		"twice":                                {[]record{got(1), got(1)}, "b#1", false, nil},
		"out of order":                         {[]record{got(2), got(1)}, "b#1", false, nil},
		"late from a frozen server":            {[]record{got(2), got(1)}, "b#1", true, []window{{"pause-server", 0, 1}}},
		"twice from a frozen server":           {[]record{got(2), got(1), got(1)}, "b#1", false, []window{{"pause-server", 0, 1}}},
		"out of order in another fault":        {[]record{got(2), got(1)}, "b#1", false, []window{{"isolate-server", 0, 1}}},
		"an index in turn":                     {[]record{holds(1, 10), holds(3, 10), holds(5, 20)}, "a#1", true, nil},
		"an index held twice":                  {[]record{holds(1, 10), holds(3, 20), holds(5, 10)}, "a#1", false, nil},
		"asked as it was handed over":          {[]record{holds(4, 20), holds(5, 10)}, "a#1", true, nil},
		"told late":                            {[]record{holds(5, 20), holds(1, 10)}, "a#1", true, nil},
		"another index":                        {[]record{holds(1, 10), holds(3, 20), elsewhere}, "a#1", true, nil},
		"reliable, late":                       {[]record{linkGot(1, 2), linkGot(2, 1)}, "b#1", false, frozen},
		"reliable, one left out":               {gap, "b#1", false, nil},
		"reliable, the sender was killed then": {gap[:2], "b#1", true, nil},
		"answered and not got":                 {[]record{sent(1)}, "a#1", false, nil},
	} {
		l := newNemesisLog()
		for _, r := range tt.records {
			l.add(tt.by, r)
		}
		if err := l.check(tt.windows); (err == nil) != tt.ok {
			t.Errorf("%s: %v, want ok %v", name, err, tt.ok)
		}
	}
	l := newNemesisLog()
	l.add("a#1", holds(1, 10))
	l.add("b#1", holds(2, 10))
	if err := l.check(nil); err == nil {
		t.Error("a token of two processes is not found")
	}
	l = newNemesisLog()
	l.add("b#1", got(1))
	l.add("a#1", sent(1))
	if err := l.check(nil); err != nil {
		t.Errorf("got and answered: %v", err)
	}
	l = newNemesisLog()
	l.add("a#1", sent(1))
	l.add("b#1", got(2))
	l.add("b#1", got(1))
	if err := l.check([]window{{"pause-server", 0, 1}}); err == nil {
		t.Error("an answered message that came late is not found")
	}
	l = newNemesisLog()
	l.add("a#1", lost)
	for _, r := range gap {
		l.add("b#1", r)
	}
	if err := l.check(nil); err != nil {
		t.Errorf("left out and reported: %v", err)
	}
}

// What is missing of mode Reliable is found.
func TestNemesisMissing(t *testing.T) {
	l := newNemesisLog()
	run := "r" + reliableRun
	now := []string{"a#1", "b#2"}
	l.add("a#1", record{Kind: "linked", PID: "b", Run: run, N: 9})
	l.add("c#1", record{Kind: "linked", PID: "b", Run: "gone" + reliableRun, N: 9})
	l.add("b#1", record{Kind: "got", PID: "a", Run: run, N: 9}) // another process
	l.add("b#2", record{Kind: "got", PID: "a", Run: run, N: 8})
	last := l.underway(now)
	if missing := l.missing(last, now); len(missing) != 1 {
		t.Errorf("missing %v, want one of a", missing)
	}
	l.add("a#1", record{Kind: "lost", PID: "b", Run: run, N: 9})
	if missing := l.missing(last, now); len(missing) != 0 {
		t.Errorf("missing %v, after it was reported", missing)
	}
	if n := l.underway(now)[link{run, "b"}]; n != 8 {
		t.Errorf("under way up to %d, want 8: 9 was reported", n)
	}
}

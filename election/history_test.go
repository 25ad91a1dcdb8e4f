package election_test

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// A belief is one stretch in which one process believed that it led.
type belief struct {
	pid         string
	bucket      int // how many buckets were lost before it: each counts its terms
	term, token uint64
	from, to    time.Time
}

func (b belief) String() string {
	return fmt.Sprintf("%s term %d token %d from %s to %s", b.pid, b.term, b.token, b.from.Format("04:05.000"), b.to.Format("04:05.000"))
}

// check returns what is wrong with a history: beliefs that overlap, a term with two
// holders, a token or term that does not rise.
func check(history []belief) (wrong []string) {
	byStart := slices.SortedFunc(slices.Values(history), func(a, b belief) int { return a.from.Compare(b.from) })
	for i, b := range byStart {
		if b.to.Before(b.from) {
			wrong = append(wrong, fmt.Sprintf("ends before it begins: %v", b))
		}
		for _, a := range byStart[:i] {
			if a.to.After(b.from) {
				wrong = append(wrong, fmt.Sprintf("two believers: %v and %v", a, b))
			}
		}
		if i == 0 {
			continue
		}
		if a := byStart[i-1]; b.token <= a.token {
			wrong = append(wrong, fmt.Sprintf("token does not rise: %v, then %v", a, b))
		}
		if a := byStart[i-1]; b.term <= a.term && b.bucket == a.bucket {
			wrong = append(wrong, fmt.Sprintf("term does not rise: %v, then %v", a, b))
		}
	}
	return wrong
}

// stuck returns the moments of those given after which nobody led for longer than
// the bound.
func stuck(history []belief, healed []time.Time, bound time.Duration) (wrong []string) {
	for _, at := range healed {
		leads := func(b belief) bool { return !b.from.After(at.Add(bound)) && b.to.After(at) }
		if !slices.ContainsFunc(history, leads) {
			wrong = append(wrong, fmt.Sprintf("nobody led within %v of %s", bound, at.Format("04:05.000")))
		}
	}
	return wrong
}

func TestCheckFindsWhatIsPlanted(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	good := []belief{
		{"a", 0, 1, 10, at(0), at(5)}, {"b", 0, 2, 20, at(5), at(9)}, {"a", 0, 3, 30, at(12), at(12)}, {"c", 0, 5, 31, at(20), at(30)},
	}
	if wrong := check(good); len(wrong) > 0 {
		t.Errorf("a good history: %v", wrong)
	}
	again := append(slices.Clone(good), belief{"a", 1, 1, 40, at(31), at(32)})
	if wrong := check(again); len(wrong) > 0 {
		t.Errorf("terms that begin again in a new bucket: %v", wrong)
	}
	if wrong := stuck(good, []time.Time{at(1), at(9), at(11), at(25)}, 11*time.Second); len(wrong) > 0 {
		t.Errorf("a history that goes on: %v", wrong)
	}
	if wrong := stuck(good, []time.Time{at(9)}, 2*time.Second); len(wrong) != 1 {
		t.Errorf("a vacancy of 3 s passed a bound of 2 s")
	}
	if wrong := stuck(good, []time.Time{at(31)}, time.Hour); len(wrong) != 1 {
		t.Errorf("a vacancy at the end passed")
	}
	for name, bad := range map[string]belief{
		"overlaps the end":        {"d", 0, 4, 30, at(19), at(21)},
		"overlaps by a little":    {"d", 0, 2, 11, at(4), at(5)},
		"within another":          {"d", 0, 6, 32, at(22), at(23)},
		"contains another":        {"d", 0, 4, 30, at(13), at(40)},
		"same term":               {"d", 0, 5, 40, at(31), at(32)},
		"same process, overlap":   {"c", 0, 6, 40, at(29), at(31)},
		"token falls":             {"d", 0, 6, 25, at(31), at(32)},
		"token stays":             {"d", 0, 6, 31, at(31), at(32)},
		"term falls":              {"d", 0, 4, 40, at(31), at(32)},
		"ends before it begins":   {"d", 0, 6, 40, at(33), at(32)},
		"begins inside the first": {"d", 0, 1, 9, at(1), at(2)},
	} {
		if wrong := check(append(slices.Clone(good), bad)); len(wrong) == 0 {
			t.Errorf("%s: passed", name)
		}
	}
}

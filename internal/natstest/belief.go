package natstest

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// A Belief is one stretch in which one process believed that it led.
type Belief struct {
	PID         string
	Bucket      int // how many buckets were lost before it: each counts its terms
	Term, Token uint64
	From, To    time.Time
}

func (b Belief) String() string {
	return fmt.Sprintf("%s term %d token %d from %s to %s", b.PID, b.Term, b.Token, b.From.Format("15:04:05.000"), b.To.Format("15:04:05.000"))
}

// InOrder returns the beliefs in the order in which they began. Those of one instant, of
// which there are many in fake time, are in the order of their tokens.
func InOrder(history []Belief) []Belief {
	return slices.SortedFunc(slices.Values(history), func(a, b Belief) int {
		return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Token, b.Token))
	})
}

// CheckBeliefs returns what is wrong with the history of one election: beliefs that
// overlap, a term with two holders, a token or term that does not rise. It sorts and
// sweeps; of beliefs that overlap it names each with the one that ends last before it.
func CheckBeliefs(history []Belief) (wrong []string) {
	byStart := InOrder(history)
	var last Belief // of those so far the one that ends last
	for i, b := range byStart {
		if b.To.Before(b.From) {
			wrong = append(wrong, fmt.Sprintf("ends before it begins: %v", b))
		}
		if i > 0 {
			a := byStart[i-1]
			if last.To.After(b.From) {
				wrong = append(wrong, fmt.Sprintf("two believers: %v and %v", last, b))
			}
			if b.Token <= a.Token {
				wrong = append(wrong, fmt.Sprintf("token does not rise: %v, then %v", a, b))
			}
			if b.Term <= a.Term && b.Bucket == a.Bucket {
				wrong = append(wrong, fmt.Sprintf("term does not rise: %v, then %v", a, b))
			}
		}
		if i == 0 || b.To.After(last.To) {
			last = b
		}
	}
	return wrong
}

// Leaderless returns the moments of those given after which nobody led for longer than
// the bound.
func Leaderless(history []Belief, healed []time.Time, bound time.Duration) (wrong []string) {
	for _, at := range healed {
		leads := func(b Belief) bool { return !b.From.After(at.Add(bound)) && b.To.After(at) }
		if !slices.ContainsFunc(history, leads) {
			wrong = append(wrong, fmt.Sprintf("nobody led within %v of %s", bound, at.Format("15:04:05.000")))
		}
	}
	return wrong
}

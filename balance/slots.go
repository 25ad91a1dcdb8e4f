package balance

import (
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A span is the indices first to first+n-1; n is positive.
type span struct{ first, n int }

func (s span) end() int { return s.first + s.n }

// Slots are a set of indices or partitions as text: ascending, apart from each other,
// "0-3,7". So a set is a value that can be compared, and a person can read it in a
// view. What is not such a text is the empty set: it grants nothing.
type slots string

// newSlots returns the set that the spans make up, which may touch and overlap.
func newSlots(spans []span) slots {
	var b strings.Builder
	for _, s := range joined(spans) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(s.first))
		if s.n > 1 {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(s.end() - 1))
		}
	}
	return slots(b.String())
}

// joined returns the same set, in ascending spans that do not touch each other.
func joined(spans []span) []span {
	sorted := slices.Clone(spans)
	slices.SortFunc(sorted, func(a, b span) int { return a.first - b.first })
	out := sorted[:0]
	for _, s := range sorted {
		switch last := len(out) - 1; {
		case last < 0 || out[last].end() < s.first:
			out = append(out, s)
		default:
			out[last].n = max(out[last].end(), s.end()) - out[last].first
		}
	}
	return out
}

// spans returns the set's spans.
func (s slots) spans() []span {
	var out []span
	for sp := range s.each() {
		out = append(out, sp)
	}
	return out
}

// each returns the set's spans one by one, none if the text is not a set.
func (s slots) each() iter.Seq[span] {
	if s == "" || !s.valid() {
		return func(func(span) bool) {}
	}
	return s.parse
}

func (s slots) valid() bool {
	next := 0
	for sp := range s.parse {
		if sp.n < 1 || sp.first < next {
			return false
		}
		next = sp.end() + 1
	}
	return true
}

// parse yields each span, and one that is empty where the text is not one.
func (s slots) parse(yield func(span) bool) {
	for part := range strings.SplitSeq(string(s), ",") {
		low, high, ranged := strings.Cut(part, "-")
		first, err := strconv.ParseUint(low, 10, 31)
		last := first
		if ranged && err == nil {
			last, err = strconv.ParseUint(high, 10, 31)
		}
		sp := span{int(first), int(last) - int(first) + 1}
		if err != nil || ranged && last == first || last >= math.MaxInt32 {
			sp = span{}
		}
		if !yield(sp) {
			return
		}
	}
}

// count returns how many there are.
func (s slots) count() (n int) {
	for sp := range s.each() {
		n += sp.n
	}
	return n
}

// has reports whether i is one of them.
func (s slots) has(i int) bool {
	for sp := range s.each() {
		if i >= sp.first && i < sp.end() {
			return true
		}
	}
	return false
}

// all returns the members of the set in ascending order.
func (s slots) all() iter.Seq[int] {
	return func(yield func(int) bool) {
		for sp := range s.each() {
			for i := range sp.n {
				if !yield(sp.first + i) {
					return
				}
			}
		}
	}
}

// without returns what is in s and not in o.
func (s slots) without(o slots) slots { return newSlots(minus(s.spans(), o.spans())) }

// both returns what is in s and in o.
func (s slots) both(o slots) slots { return s.without(s.without(o)) }

// and returns what is in s or in o.
func (s slots) and(o slots) slots { return newSlots(append(s.spans(), o.spans()...)) }

// minus returns what is in a and not in b; both are joined.
func minus(a, b []span) []span {
	var out []span
	for _, s := range a {
		for len(b) > 0 && b[0].end() <= s.first {
			b = b[1:]
		}
		at := s.first
		for _, o := range b {
			if o.first >= s.end() {
				break
			}
			if o.first > at {
				out = append(out, span{at, o.first - at})
			}
			at = max(at, o.end())
		}
		if at < s.end() {
			out = append(out, span{at, s.end() - at})
		}
	}
	return out
}

// firstOf returns the lowest n of the spans, fewer if there are not so many, and
// the rest. The spans are joined.
func firstOf(spans []span, n int) (low, rest []span) {
	n = max(n, 0)
	for i, s := range spans {
		if n <= s.n {
			if n > 0 {
				low = append(low, span{s.first, n})
			}
			if n < s.n {
				rest = append(rest, span{s.first + n, s.n - n})
			}
			return low, append(rest, spans[i+1:]...)
		}
		low = append(low, s)
		n -= s.n
	}
	return low, nil
}

func countOf(spans []span) (n int) {
	for _, s := range spans {
		n += s.n
	}
	return n
}

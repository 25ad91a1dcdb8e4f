package balance

import (
	"slices"
	"testing"
)

func TestSlots(t *testing.T) {
	for _, tt := range []struct {
		spans []span
		want  slots
	}{
		{nil, ""},
		{[]span{{3, 1}}, "3"},
		{[]span{{7, 2}, {0, 4}}, "0-3,7-8"},
		{[]span{{0, 2}, {2, 1}, {1, 4}, {9, 1}}, "0-4,9"},
	} {
		got := newSlots(tt.spans)
		if got != tt.want || newSlots(got.spans()) != got {
			t.Errorf("newSlots(%v) = %q, again %q, want %q", tt.spans, got, newSlots(got.spans()), tt.want)
		}
	}
	for _, foreign := range []slots{"x", "1-", "-1", "3-1", "1-1", "1,1", "1,2", "5,3", "0-2147483647", "1 ", ",", "1,", "99999999999"} {
		if n := foreign.count(); n != 0 || foreign.has(1) || len(foreign.spans()) > 0 {
			t.Errorf("%q has %d indices, want none", foreign, n)
		}
	}
}

// FuzzSlots: sets of small numbers behave like sets, and no text makes them panic.
func FuzzSlots(f *testing.F) {
	f.Add([]byte{1, 2, 3, 9}, []byte{2, 9, 10}, "0-3,7")
	f.Add([]byte{}, []byte{0}, "4-4")
	f.Fuzz(func(t *testing.T, a, b []byte, text string) {
		of := func(bytes []byte) (slots, []int) {
			var spans []span
			var list []int
			for _, x := range bytes {
				spans, list = append(spans, span{int(x), 1}), append(list, int(x))
			}
			slices.Sort(list)
			return newSlots(spans), slices.Compact(list)
		}
		x, xs := of(a)
		y, ys := of(b)
		check := func(name string, got slots, keep func(i int) bool) {
			for i := range 256 {
				if got.has(i) != keep(i) {
					t.Errorf("%q %s %q = %q: %d is wrong", x, name, y, got, i)
				}
			}
			if got != newSlots(got.spans()) || got.count() != len(slices.Collect(got.all())) {
				t.Errorf("%q is not in its one form", got)
			}
		}
		inX := func(i int) bool { return slices.Contains(xs, i) }
		inY := func(i int) bool { return slices.Contains(ys, i) }
		check("is", x, inX)
		check("without", x.without(y), func(i int) bool { return inX(i) && !inY(i) })
		check("both", x.both(y), func(i int) bool { return inX(i) && inY(i) })
		check("and", x.and(y), func(i int) bool { return inX(i) || inY(i) })
		low, rest := firstOf(x.spans(), len(a)/2)
		if countOf(low) != min(len(a)/2, len(xs)) || newSlots(append(low, rest...)) != x {
			t.Errorf("firstOf(%q, %d) = %v, %v", x, len(a)/2, low, rest)
		}
		s := slots(text)
		if got := newSlots(s.spans()); s.count() > 0 && got.count() != s.count() {
			t.Errorf("%q has %d, written again %q has %d", s, s.count(), got, got.count())
		}
	})
}

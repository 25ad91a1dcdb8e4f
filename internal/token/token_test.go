package token

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	legal := []string{"a", "Z", "0", "web-1", "a_b", strings.Repeat("x", 64)}
	for _, name := range legal {
		if err := Check("pid", name); err != nil {
			t.Errorf("Check(%q) = %v, want nil", name, err)
		}
	}
	illegal := []string{"", "_a", "-a", "a.b", "*", ">", "a b", "é", "a\x00", "a\n", strings.Repeat("x", 65)}
	for _, name := range illegal {
		err := Check("pid", name)
		if e, ok := errors.AsType[*Error](err); !ok || e.Field != "pid" || e.Name != name {
			t.Errorf("Check(%q) = %v, want an *Error that names it", name, err)
		}
	}
}

func TestCheckSpaceAndPID(t *testing.T) {
	if err := CheckSpace("cluster", "a_b"); err == nil {
		t.Error(`CheckSpace("a_b") = nil, want an error`)
	}
	if err := CheckSpace("cluster", "a-b"); err != nil {
		t.Errorf(`CheckSpace("a-b") = %v, want nil`, err)
	}
	if err := CheckPID(External); err == nil {
		t.Error(`CheckPID("ext") = nil, want an error`)
	}
}

func TestOrder(t *testing.T) {
	tests := []struct{ in, want []string }{
		{[]string{"10", "9", "100", "0"}, []string{"0", "9", "10", "100"}},
		{[]string{"10", "9", "a"}, []string{"10", "9", "a"}}, // one name: bytewise for all
		{[]string{"10", "9", "07"}, []string{"07", "10", "9"}},
		{[]string{"b", "a"}, []string{"a", "b"}},
	}
	for _, tt := range tests {
		got := slices.Clone(tt.in)
		slices.SortFunc(got, Order(slices.Values(tt.in)))
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q sorted = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// FuzzCheck states what every caller relies on: a legal name is one subject
// token, one key token, and survives a round trip through both.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "*", ">", "web-1", "_x", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if Check("x", s) != nil {
			return
		}
		if s == "" || len(s) > MaxLen || strings.ContainsAny(s, ".*> \t\r\n\x00$") {
			t.Errorf("Check(%q) accepted a name that is not one token", s)
		}
	})
}

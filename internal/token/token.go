// Package token says which names are legal in a fabric. Every name that can
// reach a subject or a bucket key (cluster, environment, PID, election, group)
// passes through here once, at the entry where a caller handed it over, so no
// other package has to think about dots, wildcards or control bytes. NATS itself
// does not protect us: nats.go publishes to "a.*" without complaint.
package token

import (
	"fmt"
	"iter"
	"strings"
)

// MaxLen is the longest legal name, in bytes.
const MaxLen = 64

// External is the PID of a sender outside the fabric: a plain NATS client that
// publishes to a member's subject. Nobody can join under it.
const External = "ext"

// An Error says which name was refused and why. The public packages alias it.
type Error struct {
	Field  string // what the name was for: "cluster", "pid", "election", ...
	Name   string // the name as given
	Reason string
}

func (e *Error) Error() string {
	return fmt.Sprintf("illegal %s %q: %s", e.Field, clip(e.Name), e.Reason)
}

// Check reports whether name may be used for field: a letter or digit, then up
// to 63 letters, digits, '_' or '-'.
func Check(field, name string) error {
	if name == "" {
		return &Error{field, name, "it is empty"}
	}
	if len(name) > MaxLen {
		return &Error{field, name, fmt.Sprintf("it has %d bytes, at most %d are allowed", len(name), MaxLen)}
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case (c == '_' || c == '-') && i > 0:
		default:
			return &Error{field, name, fmt.Sprintf("byte %d is %q; allowed are letters, digits and, after the first byte, '_' and '-'", i+1, c)}
		}
	}
	return nil
}

// CheckSpace is [Check] for cluster and environment names, which become parts of
// the bucket's name: without '_', "fab_<cluster>_<env>" cannot be two fabrics.
func CheckSpace(field, name string) error {
	if err := Check(field, name); err != nil {
		return err
	}
	if i := strings.IndexByte(name, '_'); i >= 0 {
		return &Error{field, name, fmt.Sprintf("byte %d is '_', which separates cluster and environment in the bucket's name", i+1)}
	}
	return nil
}

// CheckPID is [Check] for PIDs. [External] is reserved.
func CheckPID(name string) error {
	if err := Check("pid", name); err != nil {
		return err
	}
	if name == External {
		return &Error{"pid", name, "it is reserved for senders outside the fabric"}
	}
	return nil
}

// Order returns the order of a set of PIDs: by number when every one of them is an
// integer in canonical decimal form (9 before 10), bytewise as soon as one is not.
func Order(names iter.Seq[string]) func(a, b string) int { return OrderOf(Numbers(names)) }

// Numbers reports whether all names are non-negative integers.
func Numbers(names iter.Seq[string]) bool {
	for name := range names {
		if !IsNumber(name) {
			return false
		}
	}
	return true
}

// OrderOf is Order of names of which is known whether they are all numbers: it is what
// has to be asked again when names come and go.
func OrderOf(numbers bool) func(a, b string) int {
	if !numbers {
		return strings.Compare
	}
	return func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	}
}

// IsNumber reports whether s is a non-negative integer as strconv would print it.
// A legal name cannot begin with '-', so there are no negative ones.
func IsNumber(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != "" && (s[0] != '0' || len(s) == 1)
}

func clip(s string) string {
	if len(s) > MaxLen {
		return s[:MaxLen] + "..."
	}
	return s
}

package election

import "testing"

// What is read at first may be from the past: an earlier leader does not end a term.
func TestOver(t *testing.T) {
	now := Leader{PID: "a", Token: 7}
	for _, c := range []struct {
		l    Leader
		want bool
	}{
		{Leader{PID: "a", Token: 7}, false},
		{Leader{PID: "a", Token: 7, Suspected: true}, false},
		{Leader{PID: "b", Token: 5}, false},
		{Leader{PID: "a", Token: 5}, false},
		{Leader{PID: "b", Token: 9}, true},
		{Leader{PID: "a", Token: 9}, true},
		{Leader{}, true},
		{Leader{Successor: "b"}, true},
	} {
		if got := now.over(c.l); got != c.want {
			t.Errorf("term %d is over with %+v: %t, want %t", now.Token, c.l, got, c.want)
		}
	}
}

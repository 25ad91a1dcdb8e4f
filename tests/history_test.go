//go:build unix

package tests

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// What the processes of a test did, as each wrote it down. A lane is what one goroutine
// of one life of a process sends to one receiver, numbered 1, 2, 3 and so on, each
// after what became of the one before is known; in mode Reliable, without waiting for
// that.
//
//	sent     about to be sent, written before it was
//	acked    the receiver has it, by the word of Send or Flush
//	refused  nobody has it, by the word of Send
//	unknown  the outcome is
//	got      the program received it
//	again    the same, and it was on its way before: it may come after later ones
type deed struct {
	kind        string
	lane        string
	first, last uint64 // the numbers, all of them
}

// A journal is a file of deeds. A process that is killed has written what it was given
// before, but for what remember keeps.
type journal struct {
	file *os.File
	last map[string]deed // by kind and lane: what may still grow
	err  error
}

func newJournal(path string) (*journal, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return &journal{file: file, last: map[string]deed{}}, err
}

// write writes d at once.
func (j *journal) write(d deed) {
	_, err := fmt.Fprintln(j.file, d.kind, d.lane, d.first, d.last)
	j.err = errors.Join(j.err, err)
}

// remember notes a number, to be written together with those that follow it.
func (j *journal) remember(kind, lane string, n uint64) {
	key := kind + " " + lane
	d, ok := j.last[key]
	if ok && n == d.last+1 {
		d.last = n
	} else {
		if ok {
			j.write(d)
		}
		d = deed{kind, lane, n, n}
	}
	j.last[key] = d
}

// close writes the rest.
func (j *journal) close() error {
	for _, d := range j.last {
		j.write(d)
	}
	return errors.Join(j.err, j.file.Close())
}

// readJournal returns the deeds of one process in their order, but for those of
// different kinds or lanes.
func readJournal(t *testing.T, path string) (deeds []deed) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var d deed
		if _, err := fmt.Sscan(line, &d.kind, &d.lane, &d.first, &d.last); err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		deeds = append(deeds, d)
	}
	return deeds
}

// A count is how many messages a history has of each kind.
type count map[string]uint64

// checkHistory returns what is wrong with what senders did and one life of a receiver
// did: that what is acknowledged was received, what was received was sent, nothing
// twice, nothing that was refused, and each lane in order. A message whose outcome is
// unknown may come late: what a broken connection had taken in is older than what was
// sent over the next.
func checkHistory(senders, receiver []deed) (count, error) {
	type set map[uint64]bool
	n := count{}
	by := map[string]map[string]set{} // by kind and lane
	note := func(d deed) set {
		if by[d.kind] == nil {
			by[d.kind] = map[string]set{}
		}
		if by[d.kind][d.lane] == nil {
			by[d.kind][d.lane] = set{}
		}
		return by[d.kind][d.lane]
	}
	for _, d := range senders {
		s := note(d)
		for i := d.first; i <= d.last; i++ {
			s[i] = true
		}
	}
	var wrong []error
	fail := func(lane string, i uint64, what string) {
		if len(wrong) < 20 {
			wrong = append(wrong, fmt.Errorf("message %d of %s %s", i, lane, what))
		}
	}
	newest := map[string]uint64{}
	for _, d := range receiver {
		again := d.kind == "again"
		if d.kind != "got" && !again {
			fail(d.lane, d.first, "was "+d.kind+" by its receiver")
			continue
		}
		d.kind = "got"
		got := note(d)
		for i := d.first; i <= d.last; i++ {
			switch {
			case got[i]:
				fail(d.lane, i, "was received twice")
			case !by["sent"][d.lane][i]:
				fail(d.lane, i, "was received and never sent")
			case by["refused"][d.lane][i]:
				fail(d.lane, i, "was received, although its sender was told that nobody has it")
			case i < newest[d.lane] && !again && !by["unknown"][d.lane][i]:
				fail(d.lane, i, fmt.Sprintf("was received after message %d", newest[d.lane]))
			}
			got[i] = true
			newest[d.lane] = max(newest[d.lane], i)
		}
	}
	for lane, acked := range by["acked"] {
		for i := range acked {
			if !by["got"][lane][i] {
				fail(lane, i, "was acknowledged and not received")
			}
			if by["refused"][lane][i] || by["unknown"][lane][i] {
				fail(lane, i, "has two outcomes")
			}
		}
	}
	for kind, lanes := range by {
		for _, s := range lanes {
			n[kind] += uint64(len(s))
		}
	}
	return n, errors.Join(wrong...)
}

// The checker finds what it is there for.
func TestHistoryChecker(t *testing.T) {
	type deeds = []deed
	sent := deed{"sent", "a", 1, 9}
	for name, tt := range map[string]struct {
		senders, receiver deeds
		wrong             string
	}{
		"all is well":            {deeds{sent, {"acked", "a", 1, 9}}, deeds{{"got", "a", 1, 9}}, ""},
		"in two pieces":          {deeds{sent, {"acked", "a", 1, 9}}, deeds{{"got", "a", 1, 4}, {"got", "a", 5, 9}}, ""},
		"not acknowledged":       {deeds{sent}, deeds{{"got", "a", 1, 5}}, ""},
		"unknown and lost":       {deeds{sent, {"unknown", "a", 3, 3}}, deeds{{"got", "a", 1, 2}, {"got", "a", 4, 9}}, ""},
		"unknown and late":       {deeds{sent, {"unknown", "a", 3, 3}}, deeds{{"got", "a", 1, 2}, {"got", "a", 4, 9}, {"got", "a", 3, 3}}, ""},
		"refused":                {deeds{sent, {"refused", "a", 3, 3}}, deeds{{"got", "a", 1, 2}, {"got", "a", 4, 9}}, ""},
		"lanes have no order":    {deeds{sent, {"sent", "b", 1, 1}}, deeds{{"got", "a", 2, 2}, {"got", "b", 1, 1}}, ""},
		"acknowledged and lost":  {deeds{sent, {"acked", "a", 1, 9}}, deeds{{"got", "a", 1, 4}, {"got", "a", 6, 9}}, "not received"},
		"acknowledged, no word":  {deeds{sent, {"acked", "a", 1, 1}}, nil, "not received"},
		"in another lane":        {deeds{sent, {"sent", "b", 1, 1}, {"acked", "a", 1, 1}}, deeds{{"got", "b", 1, 1}}, "not received"},
		"never sent":             {deeds{sent}, deeds{{"got", "a", 10, 10}}, "never sent"},
		"of a lane nobody has":   {deeds{sent}, deeds{{"got", "b", 1, 1}}, "never sent"},
		"twice":                  {deeds{sent}, deeds{{"got", "a", 1, 2}, {"got", "a", 2, 3}}, "twice"},
		"twice, unknown":         {deeds{sent, {"unknown", "a", 2, 2}}, deeds{{"got", "a", 1, 2}, {"got", "a", 2, 2}}, "twice"},
		"refused and received":   {deeds{sent, {"refused", "a", 2, 2}}, deeds{{"got", "a", 1, 2}}, "nobody has it"},
		"out of order":           {deeds{sent}, deeds{{"got", "a", 1, 1}, {"got", "a", 3, 3}, {"got", "a", 2, 2}}, "after message 3"},
		"out of order and acked": {deeds{sent, {"acked", "a", 2, 2}}, deeds{{"got", "a", 3, 3}, {"got", "a", 2, 2}}, "after message 3"},
		"again, and late":        {deeds{sent}, deeds{{"got", "a", 1, 1}, {"got", "a", 3, 3}, {"again", "a", 2, 2}}, ""},
		"again, and twice":       {deeds{sent}, deeds{{"got", "a", 1, 3}, {"again", "a", 2, 2}}, "twice"},
		"two outcomes":           {deeds{sent, {"acked", "a", 2, 2}, {"unknown", "a", 2, 2}}, deeds{{"got", "a", 2, 2}}, "two outcomes"},
		"the receiver sent":      {deeds{sent}, deeds{{"acked", "a", 2, 2}}, "by its receiver"},
	} {
		_, err := checkHistory(tt.senders, tt.receiver)
		if tt.wrong == "" && err != nil || tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)) {
			t.Errorf("%s: %v, want %q", name, err, tt.wrong)
		}
	}
	path := t.TempDir() + "/journal"
	j, err := newJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{1, 2, 3, 5, 6, 4} {
		j.remember("got", "a", n)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(readJournal(t, path)), "[{got a 1 3} {got a 5 6} {got a 4 4}]"; got != want {
		t.Errorf("the journal has %s, want %s", got, want)
	}
}

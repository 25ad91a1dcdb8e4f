//go:build unix

package tests

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

// A nemesisLog is what all members of a run wrote.
type nemesisLog struct {
	mu      sync.Mutex // guards the fields below
	records []record
	by      []string // the process that wrote each
	view    map[string]record
	stats   map[string]record
	acked   int
	links   map[link]*linked
	late    int           // found by check: messages that came after later ones, from a frozen server
	changed chan struct{} // closed at the next view
}

func newNemesisLog() *nemesisLog {
	return &nemesisLog{
		view: map[string]record{}, stats: map[string]record{}, links: map[link]*linked{}, changed: make(chan struct{}),
	}
}

func (l *nemesisLog) add(process string, r record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch r.Kind {
	case "view":
		l.view[process] = r
		close(l.changed)
		l.changed = make(chan struct{})
		return
	case "stats":
		l.stats[process] = r
		return
	case "sent":
		if r.OK {
			l.acked++
		}
	case "linked":
		on := l.link(link{r.Run, r.PID})
		on.by, on.sent = process, r.N
	case "lost":
		l.link(link{r.Run, r.PID}).lost[r.N] = true
	case "got":
		if strings.HasSuffix(r.Run, reliableRun) {
			l.link(link{r.Run, fabric.PID(memberOf(process))}).got[process] = r.N
		}
	}
	l.records = append(l.records, r)
	l.by = append(l.by, process)
}

// A link is what one process sends to one member in mode Reliable.
type link struct {
	run string
	to  fabric.PID
}

// linked is how far a link has come.
type linked struct {
	by   string            // the process that sends
	sent uint64            // all up to this were accepted for sending
	lost map[uint64]bool   // of these, what the sender was told may not have arrived
	got  map[string]uint64 // the last that each process received
}

// link needs l.mu.
func (l *nemesisLog) link(k link) *linked {
	if l.links[k] == nil {
		l.links[k] = &linked{lost: map[uint64]bool{}, got: map[string]uint64{}}
	}
	return l.links[k]
}

// underway returns the last messages of mode Reliable that these processes have sent to
// each other, but for those that were reported lost.
func (l *nemesisLog) underway(processes []string) map[link]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := map[link]uint64{}
	for k, on := range l.links {
		if !slices.Contains(processes, on.by) {
			continue
		}
		n := on.sent
		for n > 0 && on.lost[n] {
			n--
		}
		last[k] = n
	}
	return last
}

// missing names the messages of these that have neither come to one of these processes
// nor were reported lost.
func (l *nemesisLog) missing(last map[link]uint64, processes []string) (missing []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, n := range last {
		on := l.links[k]
		i := slices.IndexFunc(processes, func(p string) bool { return memberOf(p) == string(k.to) })
		if on.got[processes[i]] < n && !on.lost[n] {
			missing = append(missing, fmt.Sprintf("%s has got %d of %d from %s", processes[i], on.got[processes[i]], n, on.by))
		}
	}
	return missing
}

func (l *nemesisLog) answered() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked
}

// used returns what a process last said that it uses.
func (l *nemesisLog) used(process string) (record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.stats[process]
	return r, ok
}

// equal reports whether these processes have one view, of count members. The channel
// is closed when another look is due.
func (l *nemesisLog) equal(processes []string, count int) (bool, string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.view[processes[0]]
	for _, p := range processes {
		v := l.view[p]
		if len(v.Views) != count || !maps.Equal(v.Views, first.Views) {
			return false, fmt.Sprintf("%s sees %v, %s sees %v", processes[0], first.Views, p, v.Views), l.changed
		}
	}
	return true, "", l.changed
}

// A delivery is one sender's process and one receiver's.
type delivery struct{ run, receiver string }

// A window is when a fault was there, and for how long after it had effects.
type window struct {
	kind       string
	begin, end int64
}

// check returns what is wrong with a history: believers, tokens, holders, messages.
func (l *nemesisLog) check(windows []window) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	buckets := 1
	for _, w := range windows {
		if w.kind == "bucket-deleted" {
			buckets++
		}
	}
	var messages error
	l.late, messages = checkMessages(l.records, l.by, windows)
	return errors.Join(checkTerms(l.records, buckets), checkHoldings(l.records, l.by), messages)
}

// faultAt names the faults that were there at a time.
func faultAt(windows []window, at int64) string {
	var kinds []string
	for _, w := range windows {
		if w.begin <= at && at <= w.end {
			kinds = append(kinds, w.kind)
		}
	}
	return strings.Join(kinds, ", ")
}

// checkTerms: nobody believes in a term after a later one was believed in, no token
// is used twice, and later terms have higher tokens.
// Terms count from 1 again in each of the buckets that there were.
func checkTerms(records []record, buckets int) error {
	var terms []record
	for _, r := range records {
		if r.Kind == "term" {
			terms = append(terms, r)
		}
	}
	slices.SortFunc(terms, func(a, b record) int { return cmp.Compare(a.Token, b.Token) })
	var wrong []error
	for i, t := range terms {
		if i > 0 && t.Token == terms[i-1].Token {
			wrong = append(wrong, fmt.Errorf("token %d is of %s and of %s", t.Token, terms[i-1].PID, t.PID))
		}
		if i == 0 || t.Term > terms[i-1].Term {
			continue
		}
		if buckets--; buckets < 1 {
			wrong = append(wrong, fmt.Errorf("token %d is of term %d, lower token %d of term %d", t.Token, t.Term, terms[i-1].Token, terms[i-1].Term))
		}
	}
	var grants []grant
	for _, t := range terms {
		grants = append(grants, grant{t.Token, t.At})
	}
	superseded := supersession(grants)
	for _, r := range records {
		if since := superseded(r.Token); r.Kind == "believes" && r.At > since {
			wrong = append(wrong, fmt.Errorf("%s believes in token %d, %v after a higher one was believed in", r.PID, r.Token, time.Duration(r.At-since)))
		}
	}
	return errors.Join(wrong...)
}

// A grant is a token, and a moment after which it was believed in.
type grant struct {
	token uint64
	at    int64
}

// supersession returns a function that tells the earliest moment at which a token above
// the one it is given was believed in. It sorts grants.
func supersession(grants []grant) func(token uint64) int64 {
	slices.SortFunc(grants, func(a, b grant) int { return cmp.Compare(a.token, b.token) })
	since := make([]int64, len(grants)+1)
	since[len(grants)] = 1<<63 - 1
	for i := len(grants) - 1; i >= 0; i-- {
		since[i] = min(since[i+1], grants[i].at)
	}
	return func(token uint64) int64 {
		i, _ := slices.BinarySearchFunc(grants, token+1, func(g grant, token uint64) int { return cmp.Compare(g.token, token) })
		return since[i]
	}
}

// checkHoldings: nobody holds an index after it was held under a higher token, and no
// token is of two processes.
func checkHoldings(records []record, by []string) error {
	type holding struct{ index, token uint64 }
	owner := map[holding]string{}
	grants := map[uint64][]grant{} // by index, the first moment of each token
	first := map[holding]int64{}
	var wrong []error
	for i, r := range records {
		if r.Kind != "holds" {
			continue
		}
		h := holding{r.N, r.Token}
		if owner[h] == "" {
			owner[h], first[h] = by[i], r.Done
		} else if owner[h] != by[i] {
			wrong = append(wrong, fmt.Errorf("index %d under token %d is of %s and of %s", r.N, r.Token, owner[h], by[i]))
		}
		first[h] = min(first[h], r.Done)
	}
	for h, at := range first {
		grants[h.index] = append(grants[h.index], grant{h.token, at})
	}
	superseded := map[uint64]func(uint64) int64{}
	for index, list := range grants {
		superseded[index] = supersession(list)
	}
	for i, r := range records {
		if r.Kind != "holds" {
			continue
		}
		if since := superseded[r.N](r.Token); r.At > since {
			wrong = append(wrong, fmt.Errorf("%s holds index %d under token %d, %v after it was held under a higher one", by[i], r.N, r.Token, time.Duration(r.At-since)))
		}
	}
	return errors.Join(wrong...)
}

// holdings returns how often an index got a holder, and the indices that were held by
// one of these processes since a moment.
func (l *nemesisLog) holdings(processes []string, since int64) (handed int, held map[uint64]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	tokens := map[[2]uint64]bool{}
	held = map[uint64]bool{}
	for i, r := range l.records {
		if r.Kind != "holds" {
			continue
		}
		tokens[[2]uint64{r.N, r.Token}] = true
		if r.At >= since && slices.Contains(processes, l.by[i]) {
			held[r.N] = true
		}
	}
	return len(tokens), held
}

// checkMessages: each process gets the messages of each other at most once and in
// order, and what was answered was got. The order of those that nobody acknowledges is
// that of one path: what a frozen server had taken in comes when it goes on, after what
// its senders have sent over another server since. Those are counted as late, in that
// fault only. What was answered, and what is of mode Reliable, is never late, and of the
// latter none is left out that was not reported.
func checkMessages(records []record, by []string, windows []window) (late int, err error) {
	var wrong []error
	answered := map[delivery]map[uint64]bool{} // from runs to members
	lost := map[delivery]map[uint64]bool{}     // the same
	newest := map[string]int64{}               // when each run was last heard of
	note := func(m map[delivery]map[uint64]bool, d delivery, n uint64) {
		if m[d] == nil {
			m[d] = map[uint64]bool{}
		}
		m[d][n] = true
	}
	for i, r := range records {
		switch {
		case r.Kind == "sent" && r.OK:
			note(answered, delivery{r.Run + "/" + memberOf(by[i]), string(r.PID)}, r.N)
		case r.Kind == "lost":
			note(lost, delivery{r.Run + "/" + memberOf(by[i]), string(r.PID)}, r.N)
		case r.Kind == "got":
			newest[r.Run] = max(newest[r.Run], r.At)
		}
	}
	last := map[delivery]uint64{}
	got := map[delivery]map[uint64]bool{} // by processes
	has := map[delivery]map[uint64]bool{} // by members
	for i, r := range records {
		if r.Kind != "got" {
			continue
		}
		d := delivery{r.Run + "/" + string(r.PID), by[i]}
		member := delivery{d.run, memberOf(by[i])}
		reliable := strings.HasSuffix(r.Run, reliableRun)
		during := faultAt(windows, r.At)
		switch {
		case got[d][r.N]:
			wrong = append(wrong, fmt.Errorf("%s got %d of %s twice, during: %s", d.receiver, r.N, d.run, during))
		case r.N < last[d] && strings.Contains(during, "pause-server") && !reliable && !answered[member][r.N]:
			late++
		case r.N < last[d]:
			wrong = append(wrong, fmt.Errorf("%s got %d of %s after %d, during: %s", d.receiver, r.N, d.run, last[d], during))
		}
		if reliable && last[d] > 0 && r.At < newest[r.Run]-reportedWithin.Nanoseconds() {
			for n := last[d] + 1; n < r.N; n++ {
				if !lost[member][n] {
					wrong = append(wrong, fmt.Errorf("%s did not get %d of %s, got %d, and nobody was told, during: %s", d.receiver, n, d.run, r.N, during))
				}
			}
		}
		note(got, d, r.N)
		note(has, member, r.N)
		last[d] = max(last[d], r.N)
	}
	for d, ns := range answered {
		for n := range ns {
			if !has[d][n] {
				wrong = append(wrong, fmt.Errorf("%s was answered message %d to %s, who did not get it", d.run, n, d.receiver))
			}
		}
	}
	return late, errors.Join(wrong...)
}

// reportedWithin is how long a sender must live on to be asked why it did not report a
// message of mode Reliable that was left out.
const reportedWithin = time.Second

// memberOf is the member whose process it is.
func memberOf(process string) string {
	member, _, _ := strings.Cut(process, "#")
	return member
}

// led is the member that believed last.
func (l *nemesisLog) led() fabric.PID {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range slices.Backward(l.records) {
		if r.Kind == "believes" {
			return r.PID
		}
	}
	return ""
}

// tally counts the records of a kind.
func (l *nemesisLog) tally(kind string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if r.Kind == kind {
			n++
		}
	}
	return n
}

// linked counts the messages of mode Reliable that were received.
func (l *nemesisLog) linked() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if r.Kind == "got" && strings.HasSuffix(r.Run, reliableRun) {
			n++
		}
	}
	return n
}

// garbage returns records that no member may write.
func (l *nemesisLog) garbage() (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, r := range l.records {
		if r.Kind == "event" && len(r.Text) > 8 && (r.Text[:7] == "garbage" || r.Text[:8] == "the node") {
			found = append(found, l.by[i]+": "+r.Text)
		}
	}
	return found
}

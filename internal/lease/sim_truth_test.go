package lease_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// A truth follows what the stream takes, in the order in which it does, and knows what
// no process can: when each renewal was applied. Whatever a process believes is held
// against it. The server's lock guards it.
type truth struct {
	buckets  int
	renewals map[string]renewal   // of each session, its last one
	applied  map[uint64]renewal   // by incarnation
	terms    map[uint64]uint64    // incarnation, by token
	kept     map[string]uint64    // highest token of what is kept, by key
	gone     map[string]time.Time // when a key vanished last
	wrong    []string
}

// A renewal was applied at a time, and is good for a lease.
type renewal struct {
	inc   uint64
	at    time.Time
	lease time.Duration
}

func newTruth() *truth {
	return &truth{
		renewals: map[string]renewal{}, applied: map[uint64]renewal{}, terms: map[uint64]uint64{},
		kept: map[string]uint64{}, gone: map[string]time.Time{},
	}
}

// newBucket begins a bucket that does not hold what the one before did.
func (t *truth) newBucket() {
	t.buckets++
	clear(t.renewals)
	clear(t.kept)
}

func (t *truth) mayVanish(key string) bool {
	if at, ok := t.gone[key]; ok && time.Since(at) < 2*simLongest {
		return false
	}
	t.gone[key] = time.Now()
	return true
}

func (t *truth) wrongf(format string, v ...any) {
	t.wrong = append(t.wrong, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, v...))
}

// commit is called before the stream takes a record at seq.
func (t *truth) commit(b *simBucket, key string, seq uint64, value []byte) {
	entry := kv.Entry{Key: key, Rev: seq, Value: value}
	switch {
	case strings.HasPrefix(key, "s."):
		t.session(b, entry)
	case strings.HasPrefix(key, "c.p."):
		t.pid(b, entry)
	case strings.HasPrefix(key, "c.e."):
		t.claim(b, entry)
	case strings.HasPrefix(key, "e."):
		var r lease.EntryRecord
		if err := json.Unmarshal(value, &r); err != nil || r.Token < t.kept[key] {
			t.wrongf("%s is stored with token %d after %d: %v", key, r.Token, t.kept[key], err)
		}
		t.kept[key] = max(t.kept[key], r.Token)
	}
}

// session: only the incarnation that has the PID is renewed.
func (t *truth) session(b *simBucket, e kv.Entry) {
	r, err := lease.ParseSession(e)
	if err != nil {
		t.wrongf("%s: %v", e.Key, err)
		return
	}
	if has := b.read(lease.KeyPID(r.PID)).seq; has != r.Inc {
		t.wrongf("%s is renewed by incarnation %d, and %d has the PID", e.Key, r.Inc, has)
	}
	n := renewal{r.Inc, time.Now(), r.Lease()}
	t.renewals[r.PID], t.applied[r.Inc] = n, n
}

// pid: nobody's PID is taken, and nobody is ended within a lease of being renewed.
func (t *truth) pid(b *simBucket, e kv.Entry) {
	r, err := lease.ParsePID(e)
	if err != nil {
		t.wrongf("%s: %v", e.Key, err)
		return
	}
	old := b.read(e.Key)
	before, err := lease.ParsePID(kv.Entry{Key: e.Key, Rev: old.seq, Value: old.value})
	if err != nil || !before.Held() || before.Proc == r.Proc {
		return // nobody had it, or its own process writes
	}
	if r.Held() || r.Left() {
		t.wrongf("%s is written by %s while incarnation %d has it", e.Key, r.Proc, old.seq)
	}
	if n := t.renewals[r.PID]; n.inc == old.seq && time.Since(n.at) < n.lease {
		t.wrongf("%s: incarnation %d is ended %v after it was renewed, with a lease of %v", e.Key, n.inc, time.Since(n.at), n.lease)
	}
}

// claim: a claim is taken from nobody whose incarnation is not over, given back by its
// holder only, and counts its terms.
func (t *truth) claim(b *simBucket, e kv.Entry) {
	r, err := lease.ParseClaim(e)
	if err != nil {
		t.wrongf("%s: %v", e.Key, err)
		return
	}
	old := b.read(e.Key)
	before, err := lease.ParseClaim(kv.Entry{Key: e.Key, Rev: old.seq, Value: old.value})
	held := err == nil && before.Held()
	same := held && before.PID == r.PID && before.Inc == r.Inc
	switch {
	case r.Held() && r.Token != 0: // the holder writes it anew
		if !same || before.Term != r.Term {
			t.wrongf("%s of term %d is rewritten over %+v", e.Key, r.Term, before)
		}
	case r.Held():
		if r.Term != before.Term+1 {
			t.wrongf("%s: term %d after %d", e.Key, r.Term, before.Term)
		}
		if held && !same && b.read(lease.KeyPID(before.PID)).seq <= before.Inc {
			t.wrongf("%s is taken by %s from %s, whose incarnation %d is not over", e.Key, r.PID, before.PID, before.Inc)
		}
		t.terms[e.Rev] = r.Inc
	case !same || before.Term != r.Term:
		t.wrongf("%s: %s gives back term %d over %+v", e.Key, r.PID, r.Term, before)
	}
}

// believed is called when a process believes in a term: the last renewal that was
// applied must allow for it.
func (t *truth) believed(token uint64) {
	n := t.applied[t.terms[token]]
	if age := time.Since(n.at); age > n.lease {
		t.wrongf("the term with token %d is believed in %v after the last renewal was applied, with a lease of %v", token, age, n.lease)
	}
}

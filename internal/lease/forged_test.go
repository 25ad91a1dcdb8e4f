package lease_test

import (
	"encoding/json"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// Somebody who can publish on the feed guesses the revision that comes next, so that
// what he says of it passes for the record itself, and every guard holds.

func TestForgedLeaseDoesNotEndItsHolder(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := start(t, s, "a"), start(t, s, "b")
		inc := stateOf(a).Incarnation
		w := b.Watcher("a", inc)
		e, err := b.Bucket().Get(t.Context(), lease.KeySession("a"))
		if err != nil {
			t.Fatal(err)
		}
		forged, err := json.Marshal(lease.SessionRecord{Key: e.Key, PID: "a", Inc: inc, LeaseMS: 500})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		w.See(kv.Entry{Key: e.Key, Rev: e.Rev, Value: forged, Seen: began})
		a.link.Cut() // the revision stays, until its holder has lost the lease
		for over, wait := w.Challenge(t.Context()); !over; over, wait = w.Challenge(t.Context()) {
			time.Sleep(max(wait, time.Millisecond))
		}
		if took := time.Since(began); took < ttl || took > ttl+ttl/50+200*time.Millisecond {
			t.Errorf("ended after %v on the word of a forged record, want after the lease of %v", took, ttl)
		}
		a.link.Heal()
		a.leave(t)
		b.leave(t)
	})
}

func TestForgedReleaseDoesNotUnseatItsHolder(t *testing.T) {
	for i := range 10 { // b may hear of both at once
		t.Run(strconv.Itoa(i), func(t *testing.T) { natstest.Bubble(t, forgeRelease) })
	}
}

func forgeRelease(t *testing.T, s *natstest.Server) {
	a, b, c := start(t, s, "a"), start(t, s, "b"), start(t, s, "c")
	ga, err := a.Claim("c.e.x").Acquire(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	won := make(chan *lease.Grant, 1)
	go func() {
		g, _ := b.Claim("c.e.x").Acquire(within(t, time.Minute), 0)
		won <- g
	}()
	time.Sleep(time.Second)
	e, err := c.Bucket().Get(t.Context(), "c.e.x")
	if err != nil {
		t.Fatal(err)
	}
	stream := info(t, c.nc)
	// On one connection, so that nothing comes between: the forged release, and the
	// record of that revision, by which the claim is c's.
	forge(t, c.nc, "c.e.x", stream+1, lease.ClaimRecord{Key: "c.e.x", State: "released", PID: "a", Term: 1})
	record, err := json.Marshal(lease.ClaimRecord{Key: "c.e.x", State: "held", PID: "c", Inc: stateOf(c).Incarnation, Term: 2, Nonce: "n"})
	if err != nil {
		t.Fatal(err)
	}
	rev, err := c.Bucket().Put(t.Context(), kv.Write{Key: "c.e.x", Value: record, GuardRev: e.Rev})
	if err != nil || rev != stream+1 {
		t.Fatalf("stored at %d, %v; the test shows nothing but at %d", rev, err, stream+1)
	}
	if g := <-won; g != nil {
		t.Errorf("b leads term %d beside c", g.Term)
	}
	_ = ga
	for _, p := range []*proc{a, b, c} {
		p.leave(t)
	}
}

// info returns the last revision of the bucket.
func info(t *testing.T, nc *nats.Conn) uint64 {
	t.Helper()
	m, err := nc.Request("$JS.API.STREAM.INFO.KV_fab_test_production", nil, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		State struct {
			Last uint64 `json:"last_seq"`
		} `json:"state"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		t.Fatal(err)
	}
	return answer.State.Last
}

package lease_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"regexp"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// forge publishes on the feed what the bucket does not hold.
func forge(t *testing.T, nc *nats.Conn, key string, rev uint64, record any) {
	t.Helper()
	data, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	m := nats.NewMsg("fab.test.production.kv." + key)
	m.Data = data
	m.Header.Set("Nats-Sequence", strconv.FormatUint(rev, 10))
	if err := nc.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestForgedFeedEndsNobody(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := start(t, s, "a"), start(t, s, "b")
		ga, err := a.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		next := make(chan *lease.Grant, 1)
		go func() {
			g, err := b.Claim("c.e.x").Acquire(t.Context(), 0)
			if err != nil {
				t.Errorf("Acquire: %v", err)
			}
			next <- g
		}()
		time.Sleep(time.Second)
		for _, huge := range []uint64{ga.Token + 1, 1 << 62} {
			forge(t, b.nc, "c.p.a", huge, lease.PIDRecord{Key: "c.p.a", State: "dead", PID: "a"})
			time.Sleep(4 * ttl)
			forge(t, b.nc, "s.a", huge, lease.SessionRecord{Key: "s.a", PID: "a", Inc: 1, LeaseMS: 1})
			forge(t, b.nc, "c.e.x", huge, lease.ClaimRecord{Key: "c.e.x", State: "released", PID: "a", Term: 70})
			time.Sleep(4 * ttl)
		}
		select {
		case <-next:
			t.Fatal("another took the claim because of a message on the feed")
		default:
		}
		if st, _ := a.State(); st.Hold == nil || !ga.Valid() {
			t.Error("the holder was ended by a message on the feed")
		}
		a.crash()
		began := time.Now()
		g := <-next
		if took := time.Since(began); took > ttl+ttl/50+200*time.Millisecond {
			t.Errorf("taken %v after the crash, want within a lease: the forged messages are forgotten", took)
		}
		if g.Term != ga.Term+1 {
			t.Errorf("term %d after %d", g.Term, ga.Term)
		}
		b.leave(t)
	})
}

// A renewal that comes within the grace of a term ends the term, not the hold; the
// next campaign with that grace must get a grant that lasts.
func TestGrantAfterOneThatEndedInItsGrace(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		const grace = 2 * time.Second
		a := start(t, s, "a")
		g, err := a.Claim("c.e.x").Acquire(t.Context(), grace)
		if err != nil {
			t.Fatal(err)
		}
		g.ReleaseWhenLost()
		st, _ := a.State()
		time.Sleep(ttl / 2)
		a.link.Cut()
		<-g.Context().Done()
		if !errors.Is(context.Cause(g.Context()), lease.ErrLost) || !st.Hold.Valid(0) {
			t.Fatal("want the grant ended and the hold not")
		}
		a.link.Heal()
		time.Sleep(10 * time.Second)
		if !st.Hold.Valid(0) {
			t.Fatal("the hold was to be renewed in time")
		}
		g2, err := a.Claim("c.e.x").Acquire(within(t, 10*time.Second), grace)
		if err != nil {
			t.Fatalf("Acquire after the renewal: %v", err)
		}
		if g2.Term != g.Term+1 {
			t.Errorf("term %d after %d: some were taken and given back", g2.Term, g.Term)
		}
		time.Sleep(time.Minute)
		if !g2.Valid() {
			t.Error("the second grant ended by itself")
		}
		a.leave(t)
	})
}

// In what is left of a hold that cannot be renewed nothing is taken that would have
// to end at once.
func TestNothingIsTakenWithinTheGrace(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := start(t, s, "a"), start(t, s, "b")
		gb, err := b.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		a.link.CutReplies()
		time.Sleep(ttl * 3 / 4)
		got := make(chan *lease.Grant, 1)
		go func() {
			g, err := a.Claim("c.e.x").Acquire(t.Context(), 2*time.Second)
			if err != nil {
				t.Errorf("Acquire: %v", err)
			}
			got <- g
		}()
		a.link.Heal()
		if err := gb.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if g := <-got; g.Term != 2 || !g.Valid() {
			t.Errorf("grant of term %d, valid %t, want term 2", g.Term, g.Valid())
		}
		a.leave(t)
		b.leave(t)
	})
}

// asleep is a machine's suspension, as its clock tells.
func TestSuspendedMachineHoldsNothing(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		var asleep atomic.Int64
		_, nc := connect(t, s)
		b := bucket(t, nc)
		if err := b.Open(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		session, err := lease.Start(within(t, time.Minute), b, lease.Config{
			PID: "a", Lease: ttl, Clock: func() time.Duration { return time.Duration(asleep.Load()) }, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		g, err := session.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		g.ReleaseWhenLost()
		asleep.Add(int64(ttl)) // it wakes up: no timer has fired yet
		if g.Valid() {
			t.Error("a grant is valid after the machine slept for a lease")
		}
		if st, _ := session.State(); st.Hold.Valid(0) {
			t.Error("a hold is valid after the machine slept for a lease")
		}
		<-g.Context().Done() // by the next renewal at the latest
		if cause := context.Cause(g.Context()); !errors.Is(cause, lease.ErrLost) {
			t.Errorf("cause = %v, want ErrLost", cause)
		}
		hold, err := session.Held(t.Context())
		if err != nil || !hold.Valid(0) {
			t.Fatalf("Held = %v, want the session to resume: nobody ended it", err)
		}
		if err := session.Leave(within(t, 10*time.Second)); err != nil {
			t.Error(err)
		}
	})
}

// A PID that is taken again has an old session record until its first renewal: that
// is no silence.
func TestYoungIncarnationIsNotEndedByAnOldSession(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := start(t, s, "a"), start(t, s, "b")
		a.leave(t)
		e, err := b.Bucket().Get(t.Context(), lease.KeySession("a"))
		if err != nil || e.Value == nil {
			t.Fatalf("the session of a = %v, %v, want the old record", e, err)
		}
		time.Sleep(20 * time.Second)
		w := b.Watcher("a", e.Rev+1000)
		w.See(e) // learned long ago
		over, wait := w.Challenge(t.Context())
		if over || wait < ttl/2 {
			t.Errorf("Challenge = %t, %v right after the PID was taken, want a lease of patience", over, wait)
		}
		b.leave(t)
	})
}

var feedSub = regexp.MustCompile(`SUB fab\.`)

// A challenger that is told nothing by the feed reads everything every 5 s, which is
// longer than some lease: it may think that a session is silent when it is not.
func TestDeafChallengerEndsNobody(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := start(t, s, "a")
		deafen := func(b []byte) { // it subscribes to something else
			for _, at := range feedSub.FindAllIndex(b, -1) {
				copy(b[at[0]:at[1]], "SUB deaf")
			}
		}
		nc, err := nats.Connect("", append(natstest.FastOptions(), nats.InProcessServer(tap{s.Link(), deafen}))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		deaf := bucket(t, nc)
		if err := deaf.Open(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		b, err := lease.Start(within(t, time.Minute), deaf, lease.Config{PID: "b", Lease: ttl, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ga, err := a.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Claim("c.e.x").Acquire(within(t, 20*time.Minute), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Acquire beside a living holder = %v, want its context's cause", err)
		}
		if !ga.Valid() {
			t.Error("the holder was ended")
		}
		a.crash()
		began := time.Now()
		if _, err := b.Claim("c.e.x").Acquire(within(t, time.Minute), 0); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 2*ttl+2*kv.Reread {
			t.Errorf("taken %v after the crash", took)
		}
		if err := b.Leave(within(t, 10*time.Second)); err != nil {
			t.Error(err)
		}
	})
}

package kv_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

const (
	ttl    = 5 * time.Second
	stream = "KV_fab_test_production"
	feed   = "fab.test.production.kv"
)

func alone(context.Context) (bool, error)    { return true, nil }
func notAlone(context.Context) (bool, error) { return false, nil }

// connect returns a connection over a link of its own, closed at the end.
func connect(t *testing.T, s *natstest.Server) (*nats.Conn, *natstest.Link) {
	t.Helper()
	link := s.Link()
	opts := append(natstest.FastOptions(), nats.InProcessServer(link), nats.ReconnectBufSize(-1))
	nc, err := nats.Connect("", opts...)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(nc.Close)
	return nc, link
}

// handle returns a handle on the bucket of the tests.
func handle(t *testing.T, nc *nats.Conn, tune ...func(*kv.Config)) *kv.Bucket {
	cfg := kv.Config{
		Name: "fab_test_production", Feed: feed, Replicas: 1, Lease: ttl, Alone: alone,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range tune {
		f(&cfg)
	}
	return kv.New(nc, cfg)
}

// opened returns an open bucket on a connection of its own.
func opened(t *testing.T, s *natstest.Server, tune ...func(*kv.Config)) (*kv.Bucket, *nats.Conn, *natstest.Link) {
	t.Helper()
	nc, link := connect(t, s)
	b := handle(t, nc, tune...)
	if err := b.Open(within(t, time.Minute)); err != nil {
		t.Fatalf("Open: %v", err)
	}
	return b, nc, link
}

// within returns a context that ends with the test, or after d.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// api calls JetStream, past the package under test.
func api(t *testing.T, nc *nats.Conn, verb string, req any) map[string]any {
	t.Helper()
	data, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	if req == nil {
		data = nil
	}
	m, err := nc.Request("$JS.API."+verb, data, 2*time.Second)
	if err != nil {
		t.Fatalf("%s: %v", verb, err)
	}
	var resp map[string]any
	if err := json.Unmarshal(m.Data, &resp); err != nil {
		t.Fatalf("%s: %v", verb, err)
	}
	return resp
}

func deleteBucket(t *testing.T, nc *nats.Conn) {
	t.Helper()
	if resp := api(t, nc, "STREAM.DELETE."+stream, nil); resp["error"] != nil {
		t.Fatalf("delete the bucket: %v", resp["error"])
	}
	time.Sleep(time.Millisecond) // the server removes the files in the background
}

func put(t *testing.T, b *kv.Bucket, key, value string, guard uint64) uint64 {
	t.Helper()
	rev, err := b.Put(t.Context(), kv.Write{Key: key, Value: []byte(value), GuardRev: guard})
	if err != nil {
		t.Fatalf("Put(%s, %s, %d): %v", key, value, guard, err)
	}
	return rev
}

func get(t *testing.T, b *kv.Bucket, key string) kv.Entry {
	t.Helper()
	e, err := b.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get(%s): %v", key, err)
	}
	return e
}

func TestPutIsGuarded(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		b, _, _ := opened(t, s)
		one := put(t, b, "k", "one", 0)
		if _, err := b.Put(t.Context(), kv.Write{Key: "k", Value: []byte("x")}); !errors.Is(err, kv.ErrRefused) {
			t.Errorf("Put over a record under guard 0 = %v, want ErrRefused", err)
		}
		two := put(t, b, "k", "two", one)
		if two <= one {
			t.Errorf("revision %d after %d, want a higher one", two, one)
		}
		if _, err := b.Put(t.Context(), kv.Write{Key: "k", Value: []byte("x"), GuardRev: one}); !errors.Is(err, kv.ErrRefused) {
			t.Errorf("Put under an old revision = %v, want ErrRefused", err)
		}
		// Under another key's guard.
		if _, err := b.Put(t.Context(), kv.Write{Key: "j", Value: []byte("x"), GuardKey: "k", GuardRev: one}); !errors.Is(err, kv.ErrRefused) {
			t.Errorf("Put under another key's old revision = %v, want ErrRefused", err)
		}
		w := kv.Write{Key: "j", Value: []byte("y"), GuardKey: "k", GuardRev: two}
		if _, err := b.Put(t.Context(), w); err != nil {
			t.Errorf("Put under another key's revision = %v", err)
		}
		if _, err := b.Put(t.Context(), w); err != nil {
			t.Errorf("the same again = %v: the guard has not changed", err)
		}
		if e := get(t, b, "k"); string(e.Value) != "two" || e.Rev != two {
			t.Errorf("k = %q at %d, want two at %d", e.Value, e.Rev, two)
		}
		if e := get(t, b, "absent"); e.Value != nil || e.Rev != 0 {
			t.Errorf("an absent key reads as %q at %d", e.Value, e.Rev)
		}
	})
}

func TestTTLIsRoundedUp(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		b, _, _ := opened(t, s)
		if _, err := b.Put(t.Context(), kv.Write{Key: "k", Value: []byte("x"), TTL: 1500 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1900 * time.Millisecond) // the server truncates 1.5 s to 1 s
		if e := get(t, b, "k"); e.Value == nil {
			t.Error("a record with a TTL of 1.5 s is gone before 2 s")
		}
		time.Sleep(2 * time.Second)
		if e := get(t, b, "k"); e.Value != nil {
			t.Error("a record with a TTL of 1.5 s is there after 3.9 s")
		}
	})
}

func TestSettleResolvesALostAck(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _, link := opened(t, s)
		b, _, _ := opened(t, s)
		rev := put(t, b, "k", "before", 0)
		type result struct {
			rev uint64
			err error
		}
		settle := func(value string) chan result {
			done := make(chan result, 1)
			go func() {
				rev, err := a.Settle(t.Context(), "k", rev, []byte(value), 0)
				done <- result{rev, err}
			}()
			return done
		}

		// The write lands, its acknowledgement does not come.
		link.CutReplies()
		done := settle("mine")
		time.Sleep(2 * time.Second)
		landed := get(t, b, "k")
		if string(landed.Value) != "mine" {
			t.Fatalf("k = %q, want the write to have landed", landed.Value)
		}
		select {
		case r := <-done:
			t.Fatalf("Settle = %d, %v without an answer", r.rev, r.err)
		default:
		}
		link.Heal()
		if r := <-done; r.err != nil || r.rev != landed.Rev {
			t.Errorf("Settle = %d, %v, want %d: the record is ours", r.rev, r.err, landed.Rev)
		}

		// It lands, and another write follows before we can read: ours is not the
		// record any more.
		rev = landed.Rev
		link.CutReplies()
		done = settle("mine again")
		time.Sleep(1500 * time.Millisecond) // the first attempt's answer is given up
		put(t, b, "k", "other", get(t, b, "k").Rev)
		link.Heal()
		if r := <-done; !errors.Is(r.err, kv.ErrRefused) {
			t.Errorf("Settle = %d, %v, want ErrRefused: another write came after", r.rev, r.err)
		}

		// It does not land: another was first.
		link.Cut()
		done = settle("late")
		time.Sleep(500 * time.Millisecond)
		link.Heal()
		if r := <-done; !errors.Is(r.err, kv.ErrRefused) {
			t.Errorf("Settle under an old revision = %v, want ErrRefused", r.err)
		}
		if e := get(t, b, "k"); string(e.Value) != "other" {
			t.Errorf("k = %q, want other", e.Value)
		}
	})
}

func TestSettleEndsInDoubtWithItsContext(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _, link := opened(t, s)
		link.Cut()
		if _, err := a.Settle(within(t, 3*time.Second), "k", 0, []byte("x"), 0); !errors.Is(err, kv.ErrUnknown) {
			t.Errorf("Settle on a cut link = %v, want ErrUnknown", err)
		}
		link.Heal() // what was held back is delivered now
		rev, err := a.Resettle(within(t, 10*time.Second), "k", 0, []byte("x"), 0)
		if err != nil {
			t.Fatalf("Resettle = %v: the same write is ours, whether or not it landed before", err)
		}
		if e := get(t, a, "k"); e.Rev != rev || string(e.Value) != "x" {
			t.Errorf("k = %q at %d, want x at %d", e.Value, e.Rev, rev)
		}
	})
}

func TestGuardZeroDoesNotCountInANewBucket(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		old := put(t, a, "k", "x", 0)
		time.Sleep(time.Millisecond) // two creations at one instant look the same
		deleteBucket(t, nc)
		b, _, _ := opened(t, s)
		if _, err := a.Settle(within(t, 10*time.Second), "j", 0, []byte("y"), 0); !errors.Is(err, kv.ErrRefused) {
			t.Errorf("Settle under guard 0 in a bucket that was made anew = %v, want ErrRefused", err)
		}
		if rev := put(t, b, "k", "z", 0); rev <= old {
			t.Errorf("revision %d in the new bucket, %d in the lost one: it must grow", rev, old)
		}
		if err := a.Open(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Settle(within(t, 10*time.Second), "i", 0, []byte("y"), 0); err != nil {
			t.Errorf("Settle after Open = %v", err)
		}
	})
}

// A write in doubt must not be waited for when the bucket it went to is gone, and
// the handle was opened again meanwhile.
func TestSettleEndsWhenTheBucketWasMadeAnew(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		rev := put(t, a, "k", "x", 0)
		deleteBucket(t, nc)
		done := make(chan error, 1)
		go func() {
			_, err := a.Settle(within(t, time.Minute), "k", rev, []byte("y"), 0)
			done <- err
		}()
		time.Sleep(time.Second) // it is in doubt: nobody answers
		began := time.Now()
		if err := a.Open(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, kv.ErrRefused) {
			t.Errorf("Settle under a revision of the lost bucket = %v, want ErrRefused", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("Settle returned %v after the new bucket was open", took)
		}
	})
}

// R1 answers the repetition of a write that landed with a refusal. If that cannot be
// resolved by reading, the outcome is unknown, not a refusal.
func TestRefusalInDoubtIsNoOutcome(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		rev := put(t, a, "k", "x", 0)
		// From the second attempt on the answers come, but no read is answered:
		// somebody else takes the requests.
		b := handle(t, nc, func(c *kv.Config) { c.Domain = "blind" })
		first := true
		forward, _, _ := opened(t, s)
		sub, err := nc.Subscribe("$JS.blind.API.$KV.fab_test_production.k", func(m *nats.Msg) {
			go func() {
				if first {
					first = false
					forward.Put(t.Context(), kv.Write{Key: "k", Value: m.Data, GuardRev: rev}) // and no answer
					return
				}
				m.Respond([]byte(`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence"}}`))
			}()
		})
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Unsubscribe()
		_, err = b.Settle(within(t, 5*time.Second), "k", rev, []byte("y"), 0)
		if !errors.Is(err, kv.ErrUnknown) || errors.Is(err, kv.ErrRefused) {
			t.Errorf("Settle = %v, want ErrUnknown only", err)
		}
	})
}

// A write that was in doubt, and is then stored under a revision that was given out before,
// shows that the bucket went back in time: it counts for nothing, though it is there.
func TestRepeatedWriteShowsARollback(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		rev := put(t, a, "k", "x", 0)
		b := handle(t, nc, func(c *kv.Config) { c.Domain = "past" }) // its server is this:
		writes := 0
		sub, err := nc.Subscribe("$JS.past.API.>", func(m *nats.Msg) {
			subject, write := strings.CutPrefix(m.Subject, "$JS.past.API.$KV.")
			if subject = "$KV." + subject; write {
				writes++
			} else {
				subject = "$JS." + strings.TrimPrefix(m.Subject, "$JS.past.")
			}
			if write && writes == 2 {
				return // lost on the way
			}
			late := write && writes > 2
			go func() {
				answer, err := nc.RequestMsg(&nats.Msg{Subject: subject, Header: m.Header, Data: m.Data}, time.Second)
				if err != nil {
					return
				}
				if late {
					answer.Data = fmt.Appendf(nil, `{"stream":"KV_fab_test_production","seq":%d}`, rev)
				}
				m.Respond(answer.Data)
			}()
		})
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Unsubscribe()
		put(t, b, "j", "x", 0)
		if got, err := b.Settle(within(t, 10*time.Second), "k", rev, []byte("y"), 0); !errors.Is(err, kv.ErrReplaced) {
			t.Errorf("Settle = %d, %v, want ErrReplaced", got, err)
		}
	})
}

func TestListAndGetWithoutABucket(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc, _ := connect(t, s)
		b := handle(t, nc)
		if _, err := b.Get(t.Context(), "k"); !errors.Is(err, kv.ErrNoBucket) {
			t.Errorf("Get = %v, want ErrNoBucket", err)
		}
		if _, err := b.List(t.Context(), "c.>"); !errors.Is(err, kv.ErrNoBucket) {
			t.Errorf("List = %v, want ErrNoBucket", err)
		}
	})
}

func TestListReadsEveryKey(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		b, nc, _ := opened(t, s)
		want := map[string]bool{}
		for i := range 200 {
			key := "s." + string(rune('a'+i%26)) + string(rune('a'+i/26))
			put(t, b, key, key, 0)
			want[key] = true
		}
		put(t, b, "c.x", "other", 0)
		// A person deletes one with the stock tools: it is absent from then on.
		m := nats.NewMsg("$KV.fab_test_production.s.aa")
		m.Header.Set("KV-Operation", "DEL")
		if _, err := nc.RequestMsg(m, time.Second); err != nil {
			t.Fatal(err)
		}
		delete(want, "s.aa")
		entries, err := b.List(t.Context(), "s.*")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !want[e.Key] || string(e.Value) != e.Key || e.Rev == 0 {
				t.Errorf("List has %s = %q at %d", e.Key, e.Value, e.Rev)
			}
			delete(want, e.Key)
		}
		if len(want) > 0 {
			t.Errorf("List left out %v", want)
		}
	})
}

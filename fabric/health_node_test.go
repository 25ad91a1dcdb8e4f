package fabric_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// happenings hands out the events of a node.
func happenings(t *testing.T, n *fabric.Node) <-chan fabric.Event {
	out := make(chan fabric.Event, 64)
	next := n.Events(t.Context())
	go func() {
		defer close(out)
		for ev, err := range next {
			if err != nil {
				return
			}
			out <- ev
		}
	}()
	return out
}

// expect waits for an event of a kind.
func expect(t *testing.T, events <-chan fabric.Event, kind fabric.EventKind) fabric.Event {
	t.Helper()
	for timeout := time.After(time.Minute); ; {
		select {
		case ev := <-events:
			if ev.Kind == kind {
				return ev
			}
		case <-timeout:
			t.Fatalf("no event %v", kind)
		}
	}
}

// Somebody changes the bucket's settings while nodes are up: each says which, once,
// and when they are right again. Nothing ends.
func TestSettingsAreLookedAt(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		n := join(t, s, "a")
		inc, events := n.Incarnation(), happenings(t, n)
		js, err := jetstream.New(s.Connect())
		if err != nil {
			t.Fatal(err)
		}
		stream, err := js.Stream(t.Context(), "KV_fab_c_production")
		if err != nil {
			t.Fatal(err)
		}
		right := stream.CachedInfo().Config
		wrong := right
		wrong.AllowDirect = true
		if _, err := js.UpdateStream(t.Context(), wrong); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		ev := expect(t, events, fabric.Misconfigured)
		e, ok := errors.AsType[*fabric.BucketConfigError](ev.Err)
		if !ok || !errors.Is(ev.Err, fabric.ErrBucketConfig) || e.Field != "allow_direct" || e.Want != false || e.Got != true {
			t.Errorf("the event has %v, want allow_direct", ev.Err)
		}
		if took := time.Since(began); took > 31*time.Second {
			t.Errorf("reported after %v", took)
		}
		time.Sleep(2 * time.Minute)
		if len(events) > 0 {
			t.Errorf("reported again: %v", <-events)
		}
		if _, err := js.UpdateStream(t.Context(), right); err != nil {
			t.Fatal(err)
		}
		expect(t, events, fabric.Mended)
		if n.Incarnation() != inc {
			t.Error("the node lost its lease")
		}
	})
}

// Who is one of many looks at the settings more seldom: together they ask as often.
func TestManyLookAtSettingsSeldom(t *testing.T) {
	for others, want := range map[int]int64{0: 8, 199: 4} { // in four minutes, of 30 s or 40 s at least
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			n, nc := join(t, s, "a"), s.Connect()
			var looks atomic.Int64
			if _, err := nc.Subscribe("$JS.API.STREAM.INFO.KV_fab_c_production", func(m *nats.Msg) {
				if len(m.Data) == 0 { // the census asks for the keys
					looks.Add(1)
				}
			}); err != nil {
				t.Fatal(err)
			}
			for range 10 { // each time for the minute of their lease
				for i := range others {
					stuff(t, nc, fmt.Sprintf("x%d", i), "")
				}
				time.Sleep(25 * time.Second) // a little more than four minutes in all
				if got := len(n.View().Members); got != others+1 {
					t.Fatalf("%d members, want %d", got, others+1)
				}
			}
			if got := looks.Load(); got != want {
				t.Errorf("one of %d looked %d times in four minutes, want %d", others+1, got, want)
			}
		})
	}
}

// A record that is not the fabric's is reported by the coordinator, and stays.
func TestForeignRecordIsReported(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		n := join(t, s, "a")
		events := happenings(t, n)
		nc := s.Connect()
		for _, key := range []string{"c.p.x", "s.x", "s.y"} {
			write(t, nc, key, `{"key":"other"}`)
			ev := expect(t, events, fabric.Foreign)
			if e, ok := errors.AsType[*fabric.ForeignRecordError](ev.Err); !ok || e.Key != key || !errors.Is(ev.Err, fabric.ErrForeignRecord) {
				t.Errorf("the event has %v, want key %s", ev.Err, key)
			}
		}
		time.Sleep(time.Minute)
		if len(events) > 0 {
			t.Errorf("reported again: %v", <-events)
		}
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		kv, err := js.KeyValue(t.Context(), "fab_c_production")
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"c.p.x", "s.x", "s.y"} {
			if e, err := kv.Get(t.Context(), key); err != nil || string(e.Value()) != `{"key":"other"}` {
				t.Errorf("%s holds %v, %v", key, e, err)
			}
		}
	})
}

// The record that opens the bucket is not the fabric's: who joins says so, and does
// not write another.
func TestForeignOpening(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		write(t, s.Connect(), "b", "garbage")
		_, err := fabric.Join(within(t, time.Minute), fabric.Config{Cluster: "c", PID: "b", NATS: options(s.Link())})
		if e, ok := errors.AsType[*fabric.ForeignRecordError](err); !ok || e.Key != "b" || !errors.Is(err, fabric.ErrBucket) {
			t.Errorf("Join = %v, want a *ForeignRecordError for b", err)
		}
		time.Sleep(4 * ttl)
		if a.Context().Err() != nil || a.Incarnation() == 0 {
			t.Error("a node that is up was ended by it")
		}
	})
}

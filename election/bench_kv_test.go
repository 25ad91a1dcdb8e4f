package election_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A kvCandidate campaigns as libraries on plain KV buckets do: it creates a key whose
// bucket forgets it after ttl, and updates it at its revision. It tries every three
// quarters of ttl, as ripienaar/nats-kv-leader-elect does.
type kvCandidate struct {
	kv     jetstream.KeyValue
	cancel context.CancelFunc
	done   chan struct{}
	won    chan time.Time // capacity 1: it wins once
}

func newKVCandidate(b *testing.B, s *natstest.Server, name string, ttl time.Duration) *kvCandidate {
	b.Helper()
	js, err := jetstream.New(s.Connect())
	if err != nil {
		b.Fatal(err)
	}
	bucket, err := js.CreateOrUpdateKeyValue(b.Context(), jetstream.KeyValueConfig{Bucket: "plain", TTL: ttl, Storage: jetstream.MemoryStorage})
	if err != nil {
		b.Fatal(err)
	}
	c := &kvCandidate{kv: bucket, done: make(chan struct{}), won: make(chan time.Time, 1)}
	ctx, cancel := context.WithCancel(b.Context())
	c.cancel = cancel
	go func() {
		defer close(c.done)
		if err := c.run(ctx, name, ttl*3/4); err != nil && ctx.Err() == nil {
			b.Error(err)
		}
	}()
	return c
}

func (c *kvCandidate) run(ctx context.Context, name string, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	rev := uint64(0)
	for {
		var err error
		if rev == 0 {
			if rev, err = c.kv.Create(ctx, "leader", []byte(name)); err == nil {
				c.won <- time.Now()
			}
		} else if rev, err = c.kv.Update(ctx, "leader", []byte(name), rev); err != nil {
			return err
		}
		if err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// crash ends it without a word.
func (c *kvCandidate) crash() { c.cancel(); <-c.done }

// BenchmarkPlainKV is what BenchmarkCrash and BenchmarkResign measure, of an election on
// a plain bucket, which has no fence and may have two leaders: from the end of the
// leader, or from the removal of its key, to the next one's.
//
//	go test ./election -run '^$' -bench 'PlainKV|Crash|Resign' -benchtime 20x
func BenchmarkPlainKV(b *testing.B) {
	for _, ttl := range []time.Duration{300 * time.Millisecond, time.Second, 2 * time.Second} {
		for _, kind := range []string{"crash", "resign"} {
			b.Run(fmt.Sprintf("%s/%v", kind, ttl), func(b *testing.B) {
				s := natstest.Start(b)
				leader := newKVCandidate(b, s, "p0", ttl)
				<-leader.won
				var took []time.Duration
				for i := 1; b.Loop(); i++ {
					next := newKVCandidate(b, s, fmt.Sprint("p", i), ttl)
					time.Sleep(time.Duration(i*137%1000) * ttl / 1000) // at any time since it tried
					began := time.Now()
					leader.crash()
					if kind == "resign" {
						if err := leader.kv.Delete(b.Context(), "leader"); err != nil {
							b.Fatal(err)
						}
					}
					took = append(took, (<-next.won).Sub(began))
					leader = next
				}
				percentiles(b, took)
				leader.crash()
			})
		}
	}
}

package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/embedded"
)

// TestMigrate moves a bucket and a stream with a consumer from a server by itself to
// a cluster: values, sequences and the consumer's position stay.
func TestMigrate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx := testContext(t)
	alone := start(t, embedded.Config{StoreDir: dir})
	nc := connect(t, alone)
	kv := bucket(t, nc)
	for i := range 50 {
		if _, err := kv.Put(ctx, fmt.Sprintf("k%d", i%7), fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	big, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "BIG", Subjects: []string{"big"}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := js.Publish(ctx, "big", []byte(strings.Repeat(fmt.Sprint(i%10), 50_000))); err != nil {
			t.Fatal(err)
		}
	}
	c, err := big.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		m, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.DoubleAck(ctx); err != nil {
			t.Fatal(err)
		}
	}
	want, err := kv.Get(ctx, "k3")
	if err != nil {
		t.Fatal(err)
	}
	if err := alone.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}

	srvs := startAll(t, memberConfigs(t))
	to := dial(t, urls(srvs))
	long, cancel := context.WithTimeout(t.Context(), formation)
	defer cancel()
	began := time.Now()
	names, err := embedded.Migrate(long, dir, to, 3)
	t.Logf("migrated in %v", time.Since(began).Round(time.Millisecond))
	if err != nil || len(names) != 2 {
		t.Fatalf("Migrate = %v, %v, want two streams", names, err)
	}
	js, err = jetstream.New(to)
	if err != nil {
		t.Fatal(err)
	}
	kv, err = js.KeyValue(testContext(t), "B")
	if err != nil {
		t.Fatal(err)
	}
	got, err := kv.Get(testContext(t), "k3")
	if err != nil || string(got.Value()) != string(want.Value()) || got.Revision() != want.Revision() {
		t.Errorf("k3 = %v, %v, want %q at %d", got, err, want.Value(), want.Revision())
	}
	if rev, err := kv.Put(testContext(t), "k3", nil); err != nil || rev != 51 {
		t.Errorf("the next revision is %d, %v, want 51", rev, err)
	}
	moved, err := js.Consumer(testContext(t), "BIG", "d")
	if err != nil {
		t.Fatal(err)
	}
	m, err := moved.Next(jetstream.FetchMaxWait(10 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if meta, err := m.Metadata(); err != nil || meta.Sequence.Stream != 6 || len(m.Data()) != 50_000 {
		t.Errorf("the consumer goes on at %v (%d bytes), %v, want 6", meta, len(m.Data()), err)
	}
	sameAge(t, js)

	// Twice is once too often, and harms nothing.
	if _, err := embedded.Migrate(testContext(t), dir, to, 3); err == nil {
		t.Error("migrated over streams that are there")
	}
	if _, err := kv.Get(testContext(t), "k3"); err != nil {
		t.Error(err)
	}
	member := memberConfigs(t)[0]
	if _, err := embedded.Migrate(testContext(t), t.TempDir()+"/x/"+member.Name, to, 3); err != nil {
		t.Errorf("an empty store: %v", err)
	}
}

// sameAge fails unless all copies agree on when the bucket was made, which a fabric
// relies on.
func sameAge(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	ages := map[string]bool{}
	leaders := map[string]bool{}
	deadline := time.Now().Add(formation)
	for len(leaders) < 3 {
		awaitCurrent(t, js)
		s, err := js.Stream(testContext(t), "KV_B")
		if err != nil {
			t.Fatal(err)
		}
		leaders[s.CachedInfo().Cluster.Leader] = true
		ages[s.CachedInfo().Created.String()] = true
		if _, err := js.Conn().Request("$JS.API.STREAM.LEADER.STEPDOWN.KV_B", nil, time.Second); err != nil && time.Now().After(deadline) {
			t.Fatal(errors.Join(err, fmt.Errorf("only %v led", leaders)))
		}
	}
	if len(ages) != 1 {
		t.Errorf("the copies were made at %v", ages)
	}
}

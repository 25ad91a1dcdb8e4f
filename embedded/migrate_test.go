package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
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
}

// TestMigrateWithoutAStore: what is no store is not made one.
func TestMigrateWithoutAStore(t *testing.T) {
	t.Parallel()
	to := connect(t, start(t, embedded.Config{}))
	dir := t.TempDir()
	missing, file, other, bare := filepath.Join(dir, "missing"), filepath.Join(dir, "file"), filepath.Join(dir, "other"), filepath.Join(dir, "bare")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{filepath.Join(dir, "empty"), filepath.Join(other, "data"), filepath.Join(bare, "jetstream")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, from := range []string{"", missing, file, filepath.Join(dir, "empty"), other, bare} {
		names, err := embedded.Migrate(testContext(t), from, to, 1)
		if !errors.Is(err, embedded.ErrStore) {
			t.Errorf("Migrate from %q = %v, %v, want ErrStore", from, names, err)
		}
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("Migrate made the directory that it was to read")
	}
}

// TestMigrateAwaitsPlacement: that servers which have just met hold each other to be
// offline is no failure.
func TestMigrateAwaitsPlacement(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	alone := start(t, embedded.Config{StoreDir: dir})
	bucket(t, connect(t, alone))
	if err := alone.Shutdown(testContext(t)); err != nil {
		t.Fatal(err)
	}
	asked := 0
	to, restored := scripted(t, "KV_B", map[string]func() string{
		server.JSApiStreamRestoreT: func() string {
			if asked++; asked < 3 {
				return `{"error":{"code":400,"err_code":10005,"description":"no suitable peers for placement, peer offline"}}`
			}
			return `{"deliver_subject":"pieces"}`
		},
	})
	names, err := embedded.Migrate(testContext(t), dir, to, 1)
	if err != nil || len(names) != 1 {
		t.Fatalf("Migrate = %v, %v, want one stream", names, err)
	}
	if n := restored.Load(); n != 1 {
		t.Errorf("the stream was handed over %d times", n)
	}
}

// TestMigrateSeesLostPositions: servers that do not take over where a consumer stands are
// given the stream again.
func TestMigrateSeesLostPositions(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), testContext(t)
	alone := start(t, embedded.Config{StoreDir: dir})
	js, err := jetstream.New(connect(t, alone))
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := js.Publish(ctx, "s", nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, durable := range []string{"d", ""} { // one without a name may be gone at any time
		c, err := s.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: durable, AckPolicy: jetstream.AckExplicitPolicy, InactiveThreshold: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		m, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.DoubleAck(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := alone.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ lost, handed int }{{0, 1}, {2, 3}, {3, 3}} {
		listed, deleted := 0, 0
		to, restored := scripted(t, "S", map[string]func() string{
			server.JSApiStreamRestoreT: func() string { return `{"deliver_subject":"pieces"}` },
			server.JSApiStreamDeleteT:  func() string { deleted++; return `{"success":true}` },
			server.JSApiConsumerListT: func() string {
				floor := 1
				if listed++; listed <= tt.lost {
					floor = 0
				}
				return fmt.Sprintf(`{"total":1,"consumers":[{"name":"d","config":{"durable_name":"d"},"ack_floor":{"stream_seq":%d}}]}`, floor)
			},
		})
		_, err := embedded.Migrate(testContext(t), dir, to, 1)
		if (err != nil) != (tt.lost == 3) || restored.Load() != int64(tt.handed) || deleted != tt.handed-1 {
			t.Errorf("lost %d times: handed over %d times, deleted %d times, %v", tt.lost, restored.Load(), deleted, err)
		}
		if err != nil && !strings.Contains(err.Error(), "consumer d stands at 0, was at 1") {
			t.Errorf("lost for good: %v", err)
		}
	}
}

// scripted is a connection to a server without JetStream, whose answers about a stream
// are made up: by the subject's template. Pieces of it are taken on the subject "pieces";
// restored counts the last ones.
func scripted(t *testing.T, stream string, answers map[string]func() string) (to *nats.Conn, restored *atomic.Int64) {
	t.Helper()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	to, restored = dial(t, srv.ClientURL()), new(atomic.Int64)
	say := func(subject string, answer func(data []byte) string) {
		t.Helper()
		if _, err := to.Subscribe(subject, func(m *nats.Msg) { m.Respond([]byte(answer(m.Data))) }); err != nil {
			t.Fatal(err)
		}
	}
	say(server.JSApiAccountInfo, func([]byte) string { return "{}" })
	say("pieces", func(data []byte) string {
		if len(data) == 0 {
			restored.Add(1)
		}
		return ""
	})
	if answers[server.JSApiConsumerListT] == nil {
		answers[server.JSApiConsumerListT] = func() string { return `{"total":0}` }
	}
	for template, answer := range answers {
		say(fmt.Sprintf(template, stream), func([]byte) string { return answer() })
	}
	return to, restored
}

// TestMigrateAll: what the server on the store does not find is named, and nothing is
// copied.
func TestMigrateAll(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	dest := connect(t, start(t, embedded.Config{}))
	to, err := jetstream.New(dest)
	if err != nil {
		t.Fatal(err)
	}
	add := func(nc *nats.Conn, name string) {
		t.Helper()
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{name}}); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(t.TempDir(), "server.conf")
	if err := os.WriteFile(conf, []byte(`
		accounts { ACME { jetstream: enabled, users: [{user: acme, password: p}] } }
	`), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "accounts")
	srv := start(t, embedded.Config{StoreDir: dir, Options: func(o *server.Options) {
		if err := o.ProcessConfigFile(conf); err != nil {
			t.Error(err)
		}
	}})
	add(connect(t, srv, nats.UserInfo("acme", "p")), "OFFICE")
	if err := srv.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	check := func(want ...string) {
		t.Helper()
		names, err := embedded.Migrate(ctx, dir, dest, 1)
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("Migrate = %v, %v, want an error with %q", names, err, w)
			}
		}
		if list := to.StreamNames(ctx); len(want) > 0 {
			for name := range list.Name() {
				t.Errorf("%s was copied", name)
			}
		}
	}
	check("ACME/OFFICE", "nats account backup")

	dir = filepath.Join(t.TempDir(), "broken")
	srv = start(t, embedded.Config{StoreDir: dir})
	add(connect(t, srv), "GOOD")
	add(connect(t, srv), "BAD")
	if err := srv.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	sum := filepath.Join(dir, "jetstream", "$G", "streams", "BAD", "meta.sum")
	if err := os.Rename(sum, sum+".kept"); err != nil {
		t.Fatal(err)
	}
	check("$G/BAD", "log")
	if err := os.Rename(sum+".kept", sum); err != nil {
		t.Fatal(err)
	}
	if names, err := embedded.Migrate(ctx, dir, dest, 1); err != nil || len(names) != 2 {
		t.Errorf("Migrate of what is whole again = %v, %v, want two streams", names, err)
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

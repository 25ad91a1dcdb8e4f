package embedded_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/embedded"
)

// The streams of a store move to other servers, here to one with a store of its own.
func ExampleMigrate() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	old, err := embedded.Start(ctx, embedded.Config{StoreDir: filepath.Join(dir, "old")})
	if err != nil {
		log.Fatal(err)
	}
	bucket, err := kvOf(old).CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "settings"})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := bucket.PutString(ctx, "colour", "green"); err != nil {
		log.Fatal(err)
	}
	if err := old.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}

	srv, err := embedded.Start(ctx, embedded.Config{StoreDir: filepath.Join(dir, "new")})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	nc, err := srv.Connect()
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	names, err := embedded.Migrate(ctx, filepath.Join(dir, "old"), nc, 1)
	if err != nil {
		log.Fatal(err)
	}
	moved, err := kvOf(srv).KeyValue(ctx, "settings")
	if err != nil {
		log.Fatal(err)
	}
	entry, err := moved.Get(ctx, "colour")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(names, string(entry.Value()))
	// Output: [KV_settings] green
}

// kvOf is JetStream as a connection inside the server's process has it.
func kvOf(srv *embedded.Server) jetstream.JetStream {
	nc, err := srv.Connect()
	if err != nil {
		log.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	return js
}

package fabric_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

// Somebody changed a setting of the bucket by hand. Join would refuse it; Repair sets it
// right, while members go on.
func ExampleRepair() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	cfg := fabric.Config{Cluster: "shop", PID: "a", URL: srv.ClientURL()}
	node, err := fabric.Join(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer node.Leave(ctx)

	nc, err := srv.Connect()
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	stream, err := js.Stream(ctx, "KV_fab_shop_production")
	if err != nil {
		log.Fatal(err)
	}
	changed := stream.CachedInfo().Config
	changed.AllowDirect = true
	if _, err := js.UpdateStream(ctx, changed); err != nil {
		log.Fatal(err)
	}

	for _, dry := range []bool{true, false, false} {
		changes, err := fabric.Repair(ctx, cfg, 0, dry)
		fmt.Println(dry, changes, err)
	}
	// Output:
	// true [allow_direct: true -> false] <nil>
	// false [allow_direct: true -> false] <nil>
	// false [] <nil>
}

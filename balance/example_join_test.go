package balance_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

// Two members share seven indices. When the process of one leaves the fabric, the
// other gets what remains.
func ExampleJoin() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	var nodes []*fabric.Node
	defer func() {
		for _, n := range nodes {
			n.Leave(ctx)
		}
	}()
	join := func(pid fabric.PID, workers int) *balance.Group {
		node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: pid, URL: srv.ClientURL()})
		if err != nil {
			log.Fatal(err)
		}
		nodes = append(nodes, node)
		g, err := balance.Join(ctx, node, balance.Config{Group: "crawl", Workers: workers})
		if err != nil {
			log.Fatal(err)
		}
		return g
	}
	a, b := join("a", 3), join("b", 4)
	until(ctx, a, 7)
	fmt.Println("a", a.Share().First, a.Share().Workers, "b", b.Share().First, b.Share().Workers)

	if err := nodes[0].Leave(ctx); err != nil {
		log.Fatal(err)
	}
	until(ctx, b, 4)
	fmt.Println("a", a.Share().First, a.Share().Workers, "b", b.Share().First, b.Share().Workers)
	// Output:
	// a 0 3 b 3 4
	// a -1 0 b 0 4
}

// until waits for a view with so many indices.
func until(ctx context.Context, g *balance.Group, total int) {
	for share, err := range g.Shares(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if share.Total == total {
			return
		}
	}
}

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

// join starts a server and joins groups of cfg under the PIDs.
func join(ctx context.Context, cfg balance.Config, pids ...fabric.PID) (groups []*balance.Group, stop func()) {
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	var nodes []*fabric.Node
	for _, pid := range pids {
		node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: pid, URL: srv.ClientURL()})
		if err != nil {
			log.Fatal(err)
		}
		g, err := balance.Join(ctx, node, cfg)
		if err != nil {
			log.Fatal(err)
		}
		nodes, groups = append(nodes, node), append(groups, g)
	}
	return groups, func() {
		for _, n := range nodes {
			n.Leave(ctx)
		}
		srv.Shutdown(ctx)
	}
}

// Each customer belongs to one of 1024 partitions, and each partition to one member.
func ExampleGroup_Partitions() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	groups, stop := join(ctx, balance.Config{Group: "customers", Partitions: balance.DefaultPartitions, MoveBudget: -1}, "a", "b")
	defer stop()
	a, b := groups[0], groups[1]
	until(ctx, a, 2)
	until(ctx, b, 2)

	p := a.Partitions()
	fmt.Println(p.Count(), len(p.Mine()), len(b.Partitions().Mine()))
	fmt.Println("agreed:", p.Owner("customer 17") == b.Partitions().Owner("customer 17"))
	fmt.Println("one of them:", p.Has("customer 17") != b.Partitions().Has("customer 17"))
	// Output:
	// 1024 512 512
	// agreed: true
	// one of them: true
}

// Three zones, and a replica of each partition in every one of them.
func ExamplePartitions_Owners() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	var groups []*balance.Group
	for _, zone := range []string{"east", "north", "west"} {
		node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: fabric.PID("cache-" + zone), URL: srv.ClientURL()})
		if err != nil {
			log.Fatal(err)
		}
		defer node.Leave(ctx)
		g, err := balance.Join(ctx, node, balance.Config{Group: "cache", Partitions: balance.DefaultPartitions, PerZone: true, Zone: zone})
		if err != nil {
			log.Fatal(err)
		}
		groups = append(groups, g)
	}
	g := groups[0]
	until(ctx, g, 3)
	p := g.Partitions()
	fmt.Println("near:", p.Owner("customer 17"))
	for zone, pid := range p.Owners("customer 17") {
		fmt.Println(zone, pid)
	}
	// Output:
	// near: cache-east
	// east cache-east
	// north cache-north
	// west cache-west
}

// Who is in the group, and what becomes of them.
func ExampleGroup_Changes() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	groups, stop := join(ctx, balance.Config{Group: "crawl", Workers: 2}, "a", "b")
	defer stop()
	until(ctx, groups[0], 4)
	for c, err := range groups[0].Changes(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		switch c.Kind {
		case fabric.Synced: // all that were there have been reported
			go groups[1].Leave(ctx)
			continue
		case fabric.Failed:
			fmt.Println(c.Member.PID, c.Kind, c.Reason)
		default:
			fmt.Println(c.Member.PID, c.Kind, c.Member.Standing, c.Member.Workers)
		}
		if c.Kind == fabric.Left {
			break
		}
	}
	// Output:
	// a join active 2
	// b join active 2
	// b leave active 2
}

// In a strict mode an index has one holder, whose checkpoint nobody else overwrites.
func ExampleGroup_Put() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	groups, stop := join(ctx, balance.Config{
		Group: "feeds", Mode: balance.StrictIndex,
		OnRevoke: func(ctx context.Context, indices []int) { /* stop the work on them, and return then */ },
	}, "a")
	defer stop()
	g := groups[0]
	if err := g.Put(ctx, 0, "feed-0", []byte("read up to line 800")); err != nil {
		log.Fatal(err)
	}
	at, err := g.Get(ctx, "feed-0")
	fmt.Println(string(at), err)
	fmt.Println(g.Put(ctx, 1, "feed-1", nil))
	// Output:
	// read up to line 800 <nil>
	// balance: index not held
}

// The whole unit of work goes by one share.
func ExampleGroup_Pin() {
	ctx := context.Background()
	g, err := balance.Static(ctx, 0, 1, 4, balance.Config{})
	if err != nil {
		log.Fatal(err)
	}
	pin := g.Pin()
	fmt.Println(pin.Share, pin.Valid())
	if err := g.SetWorkers(ctx, 2); err != nil {
		log.Fatal(err)
	}
	fmt.Println(pin.Share, pin.Valid())
	g.Leave(ctx)
	// Output:
	// 0 of 4 (epoch 1) true
	// 0 of 4 (epoch 1) false
}

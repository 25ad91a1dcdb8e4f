package cluster_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/classic/cluster"
)

// The example that comes with BurntSushi/cluster: two nodes, and a broadcast when one
// knows the other. What is gone is the ports.
func ExampleNew() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)

	// Start two nodes.
	f1, err := fabric.Join(ctx, fabric.Config{Cluster: "hello", PID: "n1", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer f1.Leave(ctx)
	n1, err := cluster.New(f1, cluster.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer n1.Close()
	f2, err := fabric.Join(ctx, fabric.Config{Cluster: "hello", PID: "n2", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer f2.Leave(ctx)
	n2, err := cluster.New(f2, cluster.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer n2.Close()

	// Make the two nodes aware of each other.
	if err := n1.Add(n2.Addr().String()); err != nil {
		log.Fatalf("Could not connect node 1 to node 2: %s", err)
	}

	// Wait for the remote to be added and then broadcast
	// a message from node 1.
	n1.RemoteAdded(func(_ cluster.Remote) {
		n1.Broadcast([]byte("Hello, world!"))
	})

	// Receive the message in node 2's inbox and print.
	m := <-n2.Inbox
	fmt.Println(string(m.Payload))
	// Output: Hello, world!
}

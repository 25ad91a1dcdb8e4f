package clustertalk_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
	cluster "github.com/natsfabric/natsfabric/fabric/classic/clustertalk"
)

// The example that comes with ClusterTalk: each server lets the others know that it is
// there. What is gone is the proxy, and the minutes of waiting for it.
func ExampleNew() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	var servers []cluster.Server
	for _, pid := range []fabric.PID{"1", "2"} {
		node, err := fabric.Join(ctx, fabric.Config{Cluster: "talk", PID: pid, URL: srv.ClientURL()})
		if err != nil {
			log.Fatal(err)
		}
		defer node.Leave(ctx)
		server, err := cluster.New(node, cluster.Config{})
		if err != nil {
			log.Fatal(err)
		}
		defer server.Close(ctx)
		servers = append(servers, server)
	}

	servers[1].Outbox() <- &cluster.Envelope{Pid: 1, Msg: "are you there?"}
	envelope := <-servers[0].Inbox()
	fmt.Printf("Received msg from %d: '%s'\n", envelope.Pid, envelope.Msg)
	// Let each server broadcast a message
	for i, server := range servers {
		server.Outbox() <- &cluster.Envelope{Pid: cluster.BROADCAST, MsgId: int64(i), Msg: "hello there"}
	}
	for _, server := range servers {
		select {
		case envelope := <-server.Inbox():
			fmt.Printf("Received msg from %d: '%s'\n", envelope.Pid, envelope.Msg)
		case <-time.After(10 * time.Second):
			fmt.Println("Waited and waited.")
		}
	}
	// Output:
	// Received msg from 2: 'are you there?'
	// Received msg from 2: 'hello there'
	// Received msg from 1: 'hello there'
}

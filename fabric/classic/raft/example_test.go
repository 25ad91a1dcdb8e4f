package raft_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
	cluster "github.com/natsfabric/natsfabric/fabric/classic/raft"
)

// The program of vibhor1403/Raft: a server broadcasts a message to its peers, here the
// other one.
func ExampleNew() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	var nodes []*fabric.Node
	for _, mypid := range []fabric.PID{"1", "2"} {
		node, err := fabric.Join(ctx, fabric.Config{Cluster: "raft", PID: mypid, URL: srv.ClientURL()})
		if err != nil {
			log.Fatal(err)
		}
		defer node.Leave(ctx)
		nodes = append(nodes, node)
	}
	var servers []cluster.Server
	for _, node := range nodes {
		server, err := cluster.New(node, cluster.Config{Silence: 2 * time.Second})
		if err != nil {
			log.Fatal(err)
		}
		defer server.Close(ctx)
		servers = append(servers, server)
	}

	server := servers[1] // it joined last, and so knows the other
	server.Outbox() <- &cluster.Envelope{SendTo: cluster.BROADCAST, SendBy: 2, Msg: "hello there"}
	close(server.Outbox())
	for envelope := range servers[0].Inbox() { // until it has been silent for two seconds
		fmt.Printf("Received msg from %d to %d: %s\n", envelope.SendBy, envelope.SendTo, envelope.Msg)
	}
	fmt.Println(server.MsgSent(), "sent,", servers[0].MsgRcvd(), "received")
	// Output:
	// Received msg from 2 to -1: hello there
	// 1 sent, 1 received
}

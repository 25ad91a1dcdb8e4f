package fabric_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

// What is published to a topic comes to the inboxes of those who have joined it.
func ExampleNode_JoinTopic() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	a, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "a", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer a.Leave(ctx)
	b, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "b", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Leave(ctx)

	prices, err := b.JoinTopic(ctx, "prices")
	if err != nil {
		log.Fatal(err)
	}
	defer prices.Leave()
	if err := a.Publish(ctx, "prices", []byte("apples 3")); err != nil {
		log.Fatal(err)
	}
	if err := a.Publish(ctx, "weather", []byte("rain")); err != nil { // nobody minds
		log.Fatal(err)
	}
	if err := a.Send(ctx, "b", []byte("and one for you")); err != nil {
		log.Fatal(err)
	}
	for range 2 {
		m, err := b.Receive(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%q from %s: %s\n", m.Topic, m.From, m.Data)
	}
	// Output:
	// "prices" from a: apples 3
	// "" from a: and one for you
}

// A request to a service goes to one of those who serve it.
func ExampleNode_Anycast() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "a", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Leave(ctx)

	_, err = node.Anycast(ctx, "double", []byte("7"))
	fmt.Println(err)

	serving, stop := context.WithCancel(ctx)
	done := make(chan error)
	go func() {
		done <- node.Serve(serving, "double", 4, func(_ context.Context, m *fabric.Message) ([]byte, error) {
			return append(m.Data, m.Data...), nil
		})
	}()
	for { // until somebody serves
		answer, err := node.Anycast(ctx, "double", []byte("7"))
		if err != nil {
			continue
		}
		fmt.Printf("%s from %s\n", answer.Data, answer.From)
		break
	}
	stop()
	fmt.Println(<-done)
	// Output:
	// anycast to double: fabric: no receiver
	// 77 from a
	// context canceled
}

// Gather asks all members, and ends when each has answered or is gone.
func ExampleNode_Gather() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	var nodes []*fabric.Node
	for _, pid := range []fabric.PID{"a", "b", "c"} {
		node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: pid, URL: srv.ClientURL()})
		if err != nil {
			log.Fatal(err)
		}
		defer node.Leave(ctx)
		go node.Handle(ctx, 1, func(context.Context, *fabric.Message) ([]byte, error) {
			return []byte("fine"), nil
		})
		nodes = append(nodes, node)
	}
	asker := nodes[2] // the last to join, who sees all
	for answer, err := range asker.Gather(ctx, fabric.Query{}, []byte("how are you?")) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s\n", answer.From, answer.Data)
	}
	// Unordered output:
	// a: fine
	// b: fine
}

// Tap shows what is published, as it is on the wire.
func ExampleNode_Tap() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "a", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Leave(ctx)

	go func() { // the tap listens from now on, not from before
		for ctx.Err() == nil {
			if node.Publish(ctx, "prices", []byte("apples 3")) != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	for t, err := range node.Tap(ctx, "g") {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(t.Class, t.Kind, t.From, t.Name, string(t.Data))
		break
	}
	// Output: g broadcast a prices apples 3
}

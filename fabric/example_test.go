package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

// Two members of one fabric, each under its PID. With servers of your own, URL
// names them and there is no embedded.Start.
func ExampleJoin() {
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

	if err := a.Send(ctx, "b", []byte("hello")); err != nil {
		log.Fatal(err)
	}
	if err := a.Broadcast(ctx, []byte("hello, all")); err != nil {
		log.Fatal(err)
	}
	for range 2 {
		m, err := b.Receive(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s to %s: %s\n", m.From, m.To, m.Data)
	}
	for _, m := range b.View().Members {
		fmt.Println("here:", m.PID)
	}
	// Output:
	// a to b: hello
	// a to *: hello, all
	// here: a
	// here: b
}

// A PID has one holder. A second process is told who it is.
func ExampleJoin_inUse() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	cfg := fabric.Config{Cluster: "shop", PID: "a", URL: srv.ClientURL()}
	first, err := fabric.Join(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer first.Leave(ctx)

	_, err = fabric.Join(ctx, cfg)
	if e, ok := errors.AsType[*fabric.PIDInUseError](err); ok {
		fmt.Println(e.PID, errors.Is(err, fabric.ErrPIDInUse))
	}
	// Output: a true
}

// A connection in the process needs no port: a service and its server in one test.
func ExampleNode_Handle() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{Addr: embedded.None})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	nc, err := srv.Connect()
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "stock", Conn: nc})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Leave(ctx)

	served := make(chan error)
	go func() {
		served <- node.Handle(ctx, 4, func(_ context.Context, m *fabric.Message) ([]byte, error) {
			if string(m.Data) != "apples" {
				return nil, fmt.Errorf("no %s", m.Data)
			}
			return []byte("7"), nil
		})
	}()
	answer, err := node.Request(ctx, "stock", []byte("apples"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", answer.Data)
	_, err = node.Request(ctx, "stock", []byte("pears"))
	if e, ok := errors.AsType[*fabric.RemoteError](err); ok {
		fmt.Println(e.Message)
	}
	if err := node.Leave(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(errors.Is(<-served, fabric.ErrClosed))
	// Output:
	// 7
	// no pears
	// true
}

// Whom a send did not reach turns out at the next Flush.
func ExampleNode_Flush() {
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

	fmt.Println(node.Send(ctx, "nobody", []byte("hello")))
	err = node.Flush(ctx)
	if u, ok := errors.AsType[fabric.Undeliverable](err); ok {
		fmt.Println(u.To, u.ID, errors.Is(u.Err, fabric.ErrNoPeer))
	}
	// Output:
	// <nil>
	// nobody 1 true
}

// Changes reports who is here, and then who comes, goes and changes.
func ExampleNode_Changes() {
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

	for c, err := range a.Changes(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		switch c.Kind {
		case fabric.Joined:
			fmt.Println("join", c.Member.PID)
		case fabric.Synced: // everyone who was here has been reported
			b, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "b", URL: srv.ClientURL()})
			if err != nil {
				log.Fatal(err)
			}
			defer b.Leave(ctx)
			if err := b.SetMeta(ctx, map[string]string{"zone": "east"}); err != nil {
				log.Fatal(err)
			}
		case fabric.Updated:
			fmt.Println("update", c.Member.PID, c.Member.Meta["zone"])
			return
		}
	}
	// Output:
	// join a
	// join b
	// update b east
}

// A server's configuration allows a process what its role needs, and nothing else.
func ExampleConfig_Permissions() {
	cfg := fabric.Config{Cluster: "shop", PID: "web-1"}
	p, err := cfg.Permissions(fabric.Scope{Role: fabric.RoleObserver})
	if err != nil {
		log.Fatal(err)
	}
	for _, subject := range p.Messages.Publish[:2] {
		fmt.Println("publish", subject)
	}
	fmt.Println("subscribe", p.Messages.Subscribe[0])
	// Output:
	// publish fab.shop.production.u.*.web-1
	// publish fab.shop.production.b.web-1
	// subscribe fab.shop.production.r.web-1.>
}

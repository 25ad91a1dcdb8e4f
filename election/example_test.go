package election_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

// A campaign waits for its turn. The token of every term is larger than that of
// the terms before.
func ExampleNew() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "web-1", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Leave(ctx)

	billing, err := election.New(node, election.Config{Name: "billing"})
	if err != nil {
		log.Fatal(err)
	}
	var token uint64
	for range 2 {
		term, err := billing.Campaign(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("term", term.Number(), "valid:", term.Valid(), "token grew:", term.Token() > token)
		token = term.Token()
		if err := term.Resign(ctx); err != nil {
			log.Fatal(err)
		}
		fmt.Println(context.Cause(term.Context()))
	}
	_, err = billing.Leader(ctx)
	fmt.Println("nobody leads:", errors.Is(err, election.ErrNoLeader))
	// Output:
	// term 1 valid: true token grew: true
	// election: term resigned
	// term 2 valid: true token grew: true
	// election: term resigned
	// nobody leads: true
}

// Lead runs a function while this process leads, again after every loss, until the
// function returns by itself.
func ExampleElection_Lead() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "web-1", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Leave(ctx)

	billing, err := election.New(node, election.Config{Name: "billing", Grace: time.Second})
	if err != nil {
		log.Fatal(err)
	}
	highest := uint64(0) // what the resource remembers, in the same transaction as its data
	err = billing.Lead(ctx, func(ctx context.Context, t *election.Term) error {
		if t.Token() < highest {
			return errors.New("fenced: a later leader was here")
		}
		highest = t.Token()
		fmt.Println("billing as the leader, term", t.Number())
		return nil
	})
	fmt.Println(err)
	// Output:
	// billing as the leader, term 1
	// <nil>
}

// A leader keeps its cursor where no deposed leader can overwrite it, and publishes to
// a stream from which the next leader shuts it out.
func ExampleFenceStream() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "web-1", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Leave(ctx)
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}); err != nil {
		log.Fatal(err)
	}

	feed, err := election.New(node, election.Config{Name: "feed"})
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		term, err := feed.Campaign(ctx)
		if err != nil {
			log.Fatal(err)
		}
		orders, err := election.FenceStream(ctx, js, term, "ORDERS", "orders.fence") // before reading
		if err != nil {
			log.Fatal(err)
		}
		cursor, err := term.Get(ctx, "cursor")
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("term %d begins after %q\n", term.Number(), cursor)
		next := fmt.Sprint("order ", term.Number())
		if _, err := orders.Publish(ctx, "orders.new", []byte(next)); err != nil {
			log.Fatal(err)
		}
		if err := term.Put(ctx, "cursor", []byte(next)); err != nil {
			log.Fatal(err)
		}
		if err := term.Resign(ctx); err != nil {
			log.Fatal(err)
		}
		_, err = orders.Publish(ctx, "orders.new", []byte("too late"))
		fmt.Println(errors.Is(err, election.ErrFenced), errors.Is(term.Put(ctx, "cursor", nil), election.ErrFenced))
	}
	// Output:
	// term 1 begins after ""
	// true true
	// term 2 begins after "order 1"
	// true true
}

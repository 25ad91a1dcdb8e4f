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

// A message of Mode Durable waits for a process that is not there yet. What that cannot
// handle becomes a dead letter.
func ExampleMailbox() {
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
	for _, text := range []string{"order 1", "order x"} {
		err := a.SendMsg(ctx, &fabric.Message{To: "stock", Mode: fabric.Durable, Data: []byte(text)})
		if err != nil {
			log.Fatal(err)
		}
	}

	stock, err := fabric.Join(ctx, fabric.Config{
		Cluster: "shop", PID: "stock", URL: srv.ClientURL(),
		Mailbox: fabric.Mailbox{On: true, Attempts: 2, Backoff: 10 * time.Millisecond},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer stock.Leave(ctx)
	for range 3 {
		m, err := stock.Receive(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s, attempt %d\n", m.Data, m.Attempt())
		var failed error
		if string(m.Data) == "order x" {
			failed = errors.New("x is no number")
		}
		if err := m.Done(ctx, failed); err != nil {
			log.Fatal(err)
		}
	}
	for stock.Stats().Parked == 0 { // it takes a round trip
		time.Sleep(time.Millisecond)
	}
	for d, err := range a.DeadLetters(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("dead: %s from %s to %s: %s\n", d.Message.Data, d.Message.From, d.Message.To, d.Reason)
	}
	// Output:
	// order 1, attempt 1
	// order x, attempt 1
	// order x, attempt 2
	// dead: order x from a to stock: x is no number
}

// An administrator makes the mailbox of a process that may not do so itself.
func ExampleCreateMailboxes() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	root := fabric.Config{Cluster: "shop", PID: "root", URL: srv.ClientURL()}
	admin, err := fabric.Join(ctx, root)
	if err != nil {
		log.Fatal(err)
	}
	defer admin.Leave(ctx)
	if err := fabric.CreateMailboxes(ctx, root, "stock"); err != nil {
		log.Fatal(err)
	}
	counts, err := admin.Mail(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%+v\n", counts)

	stock, err := fabric.Join(ctx, fabric.Config{
		Cluster: "shop", PID: "stock", URL: srv.ClientURL(), Role: fabric.RoleMember, Mailbox: fabric.Mailbox{On: true},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer stock.Leave(ctx)
	// Output: [{PID:stock Mailbox:true Waiting:0}]
}

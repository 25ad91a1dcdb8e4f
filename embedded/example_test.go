package embedded_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/embedded"
)

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)

	// Inside the process...
	inside, err := srv.Connect()
	if err != nil {
		log.Fatal(err)
	}
	defer inside.Close()
	sub, err := inside.SubscribeSync("greet")
	if err != nil {
		log.Fatal(err)
	}
	if err := inside.Flush(); err != nil {
		log.Fatal(err)
	}

	// ...and from any other.
	outside, err := nats.Connect(srv.ClientURL())
	if err != nil {
		log.Fatal(err)
	}
	defer outside.Close()
	if err := outside.Publish("greet", []byte("hello")); err != nil {
		log.Fatal(err)
	}

	msg, err := sub.NextMsgWithContext(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(msg.Data))
	// Output: hello
}

package typed_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/typed"
)

type (
	Order struct{ Item string }
	Query struct{ Item string }
	Stock struct{ Left int }
)

// A service that takes orders and answers queries, and a client of it. Neither
// registers a type with a codec.
func ExampleNewMux() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	shop, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "shop", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer shop.Leave(ctx)
	client, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "client", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Leave(ctx)

	left := map[string]int{"apples": 7}
	mux := typed.NewMux(typed.Config{})
	if err := errors.Join(
		typed.Handle(mux, func(_ context.Context, m *typed.Message[Order]) error {
			left[m.Value.Item]--
			return nil
		}),
		typed.HandleCall(mux, func(_ context.Context, m *typed.Message[Query]) (Stock, error) {
			return Stock{Left: left[m.Value.Item]}, nil
		}),
	); err != nil {
		log.Fatal(err)
	}
	go shop.Handle(ctx, 1, mux.Serve)

	if err := typed.Send(ctx, client, "shop", Order{"apples"}); err != nil {
		log.Fatal(err)
	}
	stock, err := typed.Call[Query, Stock](ctx, client, "shop", Query{"apples"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(stock.Left)

	_, err = typed.Call[string, string](ctx, client, "shop", "hello")
	fmt.Println(errors.Is(err, typed.ErrUnknownType))
	// Output:
	// 6
	// true
}

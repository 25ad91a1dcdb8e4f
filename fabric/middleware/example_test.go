package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"time"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/middleware"
)

// A service that survives its panics and takes two requests a minute.
func ExampleHandle() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "stock", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Leave(ctx)

	serve := func(_ context.Context, m *fabric.Message) ([]byte, error) {
		return m.Data[:3], nil
	}
	go node.Handle(ctx, 1, middleware.Handle(serve,
		middleware.Recover{Logger: slog.New(slog.DiscardHandler)},
		middleware.Throttle{Rate: 2. / 60, Burst: 2, Reject: true}))

	peer := middleware.Wrap(node)
	for _, data := range []string{"apples", "", "pears"} {
		answer, err := peer.Request(ctx, "stock", []byte(data))
		switch {
		case errors.Is(err, middleware.ErrPanic), errors.Is(err, middleware.ErrThrottled):
			fmt.Println(err)
		case err != nil:
			log.Fatal(err)
		default:
			fmt.Printf("%s\n", answer.Data)
		}
	}
	// Output:
	// app
	// middleware: panic: request to stock: stock answered: internal error: panic
	// middleware: throttled: request to stock: stock answered: middleware: throttled
}

// A client whose requests wait for the service to come.
func ExampleWrap() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	client, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "client", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Leave(ctx)

	tries := 0
	peer := middleware.Wrap(client,
		middleware.Timeout{After: 15 * time.Second},
		middleware.Retry{Tries: 1000, MaxWait: 100 * time.Millisecond, If: func(err error) bool {
			if tries++; tries == 1 { // now the service starts
				go start(ctx, srv.ClientURL())
			}
			return errors.Is(err, fabric.ErrNoPeer) || middleware.NotArrived(err)
		}})
	answer, err := peer.Request(ctx, "stock", []byte("apples"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", answer.Data)
	// Output: 7
}

func start(ctx context.Context, url string) {
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "stock", URL: url})
	if err != nil {
		return
	}
	defer node.Leave(context.WithoutCancel(ctx))
	_ = node.Handle(ctx, 1, func(context.Context, *fabric.Message) ([]byte, error) { return []byte("7"), nil })
}

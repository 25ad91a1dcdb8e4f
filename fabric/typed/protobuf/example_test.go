package protobuf_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/typed"
	"github.com/natsfabric/natsfabric/fabric/typed/protobuf"
)

// A service that reads the text of a duration, with messages that come with protobuf.
func ExampleCall() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer srv.Shutdown(ctx)
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "clock", URL: srv.ClientURL()})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Leave(ctx)

	mux := typed.NewMux(typed.Config{Codecs: []typed.Codec{protobuf.Codec{}}})
	parse := func(_ context.Context, m *typed.Message[*wrapperspb.StringValue]) (*durationpb.Duration, error) {
		d, err := time.ParseDuration(m.Value.Value)
		return durationpb.New(d), err
	}
	if err := typed.HandleCall(mux, parse); err != nil {
		log.Fatal(err)
	}
	go node.Handle(ctx, 1, mux.Serve)

	d, err := protobuf.Call[*wrapperspb.StringValue, *durationpb.Duration](ctx, node, "clock", wrapperspb.String("1h30m"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(d.Seconds)
	_, err = protobuf.Call[*wrapperspb.StringValue, *durationpb.Duration](ctx, node, "clock", wrapperspb.String("soon"))
	fmt.Println(err)
	// Output:
	// 5400
	// request to clock: clock answered: time: invalid duration "soon"
}

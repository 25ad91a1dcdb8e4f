package otelfabric_test

import (
	"context"
	"fmt"
	"log"
	"slices"
	"strings"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/middleware"
	"github.com/natsfabric/natsfabric/fabric/otelfabric"
)

// One trace from the request to the handler.
func ExampleTrace() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	spans := tracetest.NewSpanRecorder() // where a program has its exporter
	tracing := otelfabric.Trace{Provider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))}

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

	serve := func(context.Context, *fabric.Message) ([]byte, error) { return []byte("7"), nil }
	handled := make(chan error)
	go func() { handled <- node.Handle(ctx, 1, middleware.Handle(serve, tracing)) }()
	answer, err := middleware.Wrap(node, tracing).Request(ctx, "stock", []byte("apples"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", answer.Data)
	if err := node.Leave(ctx); err != nil {
		log.Fatal(err)
	}
	<-handled // so that its span has ended

	ended := spans.Ended()
	slices.SortFunc(ended, func(a, b sdktrace.ReadOnlySpan) int { return strings.Compare(a.Name(), b.Name()) })
	for _, span := range ended {
		fmt.Println(span.Name(), span.SpanKind())
	}
	fmt.Println(ended[0].Parent().SpanID() == ended[1].SpanContext().SpanID())
	// Output:
	// 7
	// fabric handle server
	// fabric request client
	// true
}

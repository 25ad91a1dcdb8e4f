package otelfabric

import (
	"context"
	"maps"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/middleware"
)

// scope is the name of the tracer and of the meter.
const scope = "github.com/natsfabric/natsfabric/fabric/otelfabric"

// Trace is middleware, both ways, that makes spans and carries their context from
// process to process. The zero value is usable.
type Trace struct {
	// Provider makes the spans. Default: the global one when the middleware is
	// applied.
	Provider trace.TracerProvider
	// Propagator writes and reads the headers. Default: W3C Trace Context.
	Propagator propagation.TextMapPropagator
}

var _ interface {
	middleware.Inbound
	middleware.Outbound
} = Trace{}

func (t Trace) withDefaults() (trace.Tracer, propagation.TextMapPropagator) {
	if t.Provider == nil {
		t.Provider = otel.GetTracerProvider()
	}
	if t.Propagator == nil {
		t.Propagator = propagation.TraceContext{}
	}
	return t.Provider.Tracer(scope), t.Propagator
}

// Handler has a span for each message that next handles. Its status is that of next's
// error.
func (t Trace) Handler(next middleware.Handler) middleware.Handler {
	tracer, propagator := t.withDefaults()
	return func(ctx context.Context, m *fabric.Message) ([]byte, error) {
		if len(m.Header) > 0 {
			ctx = propagator.Extract(ctx, carrier(m.Header))
		}
		kind := trace.SpanKindConsumer
		if m.IsRequest() {
			kind = trace.SpanKindServer
		}
		ctx, span := tracer.Start(ctx, "fabric handle", trace.WithSpanKind(kind))
		defer span.End()
		if span.IsRecording() {
			span.SetAttributes(describe(m, "process", m.ID)...)
		}
		data, err := next(ctx, m)
		failed(span, err)
		return data, err
	}
}

// Sender has a span for each message that next sends, and gives a message of a
// sampled trace its headers.
func (t Trace) Sender(next middleware.Sender) middleware.Sender {
	tracer, propagator := t.withDefaults()
	return func(ctx context.Context, m *fabric.Message, request bool) (*fabric.Message, error) {
		name, kind := "fabric send", trace.SpanKindProducer
		switch {
		case request:
			name, kind = "fabric request", trace.SpanKindClient
		case m.Topic != "":
			name = "fabric publish"
		case m.To == fabric.Everyone:
			name = "fabric broadcast"
		}
		ctx, span := tracer.Start(ctx, name, trace.WithSpanKind(kind))
		defer span.End()
		if span.IsRecording() {
			span.SetAttributes(describe(m, "send", m.ID)...)
		}
		if span.SpanContext().IsSampled() {
			traced := *m
			traced.Header = make(nats.Header, len(m.Header)+1)
			maps.Copy(traced.Header, m.Header)
			for _, key := range propagator.Fields() {
				carrier(traced.Header).remove(key) // of another trace
			}
			propagator.Inject(ctx, carrier(traced.Header))
			m = &traced
		}
		answer, err := next(ctx, m, request)
		failed(span, err)
		return answer, err
	}
}

// describe returns what a span says of a message. The names are those of
// OpenTelemetry's conventions for messaging, where there is one.
func describe(m *fabric.Message, operation string, id uint64) []attribute.KeyValue {
	kvs := []attribute.KeyValue{
		attribute.String("messaging.system", "nats"),
		attribute.String("messaging.operation.type", operation),
		attribute.String("messaging.destination.name", string(m.To)),
		attribute.Int("messaging.message.body.size", len(m.Data)),
	}
	if id != 0 { // a message to be sent has none unless the caller gave it one
		kvs = append(kvs, attribute.String("messaging.message.id", strconv.FormatUint(id, 10)))
	}
	if m.Topic != "" {
		kvs = append(kvs, attribute.String("fabric.topic", m.Topic))
	}
	if m.From != "" && operation == "process" {
		kvs = append(kvs, attribute.String("fabric.from", string(m.From)))
	}
	if m.Type != "" {
		kvs = append(kvs, attribute.String("fabric.type", m.Type))
	}
	return kvs
}

func failed(span trace.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
}

// A carrier is a header to a propagator: it writes lower case and reads any.
type carrier nats.Header

// Get returns the first value of key.
func (c carrier) Get(key string) string {
	if v := c.Values(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// Values returns all values of key. In the very case they come first.
func (c carrier) Values(key string) []string {
	if v := c[key]; len(v) > 0 {
		return v
	}
	for k, v := range c {
		if strings.EqualFold(k, key) && len(v) > 0 {
			return v
		}
	}
	return nil
}

// Set replaces the values of key, in whatever case they are.
func (c carrier) Set(key, value string) {
	c.remove(key)
	c[strings.ToLower(key)] = []string{value}
}

func (c carrier) remove(key string) {
	maps.DeleteFunc(c, func(k string, _ []string) bool { return strings.EqualFold(k, key) })
}

// Keys returns the keys, as they are.
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}

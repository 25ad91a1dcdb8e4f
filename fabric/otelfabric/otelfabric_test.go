package otelfabric

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/middleware"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

func join(t *testing.T, s *natstest.Server, pid fabric.PID) *fabric.Node {
	t.Helper()
	n, err := fabric.Join(t.Context(), fabric.Config{
		Cluster: "c", PID: pid, NATS: append(natstest.FastOptions(), nats.InProcessServer(s.Provider())),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Leave(context.WithoutCancel(t.Context())) })
	return n
}

// provider records what a sampler lets through.
func provider(s sdktrace.Sampler) (Trace, *tracetest.SpanRecorder) {
	r := tracetest.NewSpanRecorder()
	return Trace{Provider: sdktrace.NewTracerProvider(sdktrace.WithSampler(s), sdktrace.WithSpanProcessor(r))}, r
}

// A trace goes on in another process and from there to a third; each with a provider
// of its own.
func TestTraceGoesOn(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b, c := join(t, s, "a"), join(t, s, "b"), join(t, s, "c")
		ta, ra := provider(sdktrace.AlwaysSample())
		tb, rb := provider(sdktrace.ParentBased(sdktrace.NeverSample()))
		tc, rc := provider(sdktrace.ParentBased(sdktrace.NeverSample()))
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); wg.Wait() }()
		viaB := middleware.Wrap(b, tb)
		done := make(chan nats.Header)
		wg.Go(func() {
			_ = b.Handle(ctx, 1, middleware.Handle(func(ctx context.Context, m *fabric.Message) ([]byte, error) {
				return nil, viaB.SendMsg(ctx, &fabric.Message{To: "c", ID: 5, Type: "x", Header: nats.Header{"k": {"v"}}})
			}, tb))
		})
		wg.Go(func() {
			_ = c.Handle(ctx, 1, middleware.Handle(func(_ context.Context, m *fabric.Message) ([]byte, error) {
				done <- m.Header
				return nil, errors.New("no")
			}, tc))
		})
		in := &fabric.Message{To: "b"}
		if _, err := middleware.Wrap(a, ta).RequestMsg(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		header := <-done
		cancel()
		wg.Wait()
		if in.Header != nil {
			t.Error("the message was changed")
		}
		if len(header) != 2 || header.Get("k") != "v" || len(header["traceparent"]) != 1 {
			t.Errorf("c received the header %v", header)
		}
		sa, sb, sc := ra.Ended(), rb.Ended(), rc.Ended()
		if len(sa) != 1 || len(sb) != 2 || len(sc) != 1 {
			t.Fatalf("%d, %d and %d spans, want 1, 2, 1", len(sa), len(sb), len(sc))
		}
		chain := []sdktrace.ReadOnlySpan{sa[0], sb[1], sb[0], sc[0]} // b's send ends first
		kinds := []trace.SpanKind{trace.SpanKindClient, trace.SpanKindServer, trace.SpanKindProducer, trace.SpanKindConsumer}
		for i, span := range chain {
			if i > 0 && (span.Parent().SpanID() != chain[i-1].SpanContext().SpanID() || span.SpanContext().TraceID() != sa[0].SpanContext().TraceID()) {
				t.Errorf("%s is not in the trace after %s", span.Name(), chain[i-1].Name())
			}
			if span.SpanKind() != kinds[i] {
				t.Errorf("%s is a %v, want %v", span.Name(), span.SpanKind(), kinds[i])
			}
		}
		if got := sc[0].Status(); got.Code != codes.Error || got.Description != "no" || len(sc[0].Events()) != 1 {
			t.Errorf("the status of a failed handler is %+v", got)
		}
		attributes := map[string]string{}
		for _, kv := range sc[0].Attributes() {
			attributes[string(kv.Key)] = kv.Value.String()
		}
		want := map[string]string{
			"messaging.system": "nats", "messaging.operation.type": "process", "messaging.destination.name": "c",
			"messaging.message.body.size": "0", "messaging.message.id": "5", "fabric.from": "b", "fabric.type": "x",
		}
		if !reflect.DeepEqual(attributes, want) {
			t.Errorf("attributes are %v, want %v", attributes, want)
		}
	})
}

// What is not sampled has no header, and what is has its own and not the caller's.
func TestInjectedOnlyWhenSampled(t *testing.T) {
	var sent *fabric.Message
	next := func(_ context.Context, m *fabric.Message, _ bool) (*fabric.Message, error) {
		sent = m
		return nil, nil
	}
	never, _ := provider(sdktrace.NeverSample())
	always, _ := provider(sdktrace.AlwaysSample())
	m := &fabric.Message{To: "b"}
	if _, err := never.Sender(next)(t.Context(), m, false); err != nil || sent != m || sent.Header != nil {
		t.Errorf("not sampled: sent %+v, %v", sent, err)
	}
	if _, err := (Trace{}).Sender(next)(t.Context(), m, false); err != nil || sent != m {
		t.Errorf("no provider: sent %+v, %v", sent, err)
	}
	m.Header = nats.Header{"Traceparent": {"stale"}, "TraceState": {"stale"}, "k": {"v"}}
	state, err := trace.ParseTraceState("vendor=1")
	if err != nil {
		t.Fatal(err)
	}
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, TraceState: state})
	if _, err := always.Sender(next)(trace.ContextWithSpanContext(t.Context(), parent), m, false); err != nil {
		t.Fatal(err)
	}
	if h := sent.Header; len(h) != 3 || !strings.HasPrefix(h["traceparent"][0], "00-0100") || h["tracestate"][0] != "vendor=1" || h["k"][0] != "v" {
		t.Errorf("sent the header %v", h)
	}
	if _, err := always.Sender(next)(t.Context(), m, false); err != nil || len(sent.Header) != 2 {
		t.Errorf("a trace without a state: sent the header %v, %v", sent.Header, err)
	}
	if len(m.Header) != 3 || m.Header["Traceparent"][0] != "stale" {
		t.Errorf("the caller's header is %v", m.Header)
	}
}

// The header is found in any case, and nonsense in it begins a trace of its own.
func TestReadInAnyCase(t *testing.T) {
	const parent = "00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01"
	for _, c := range []struct {
		key, value string
		found      bool
	}{
		{"traceparent", parent, true}, {"Traceparent", parent, true}, {"TRACEPARENT", parent, true},
		{"traceparent", "00-00-00-01", false}, {"traceparent", "", false}, {"trace-parent", parent, false},
	} {
		tr, r := provider(sdktrace.AlwaysSample())
		h := tr.Handler(func(context.Context, *fabric.Message) ([]byte, error) { return nil, nil })
		if _, err := h(t.Context(), &fabric.Message{Header: nats.Header{c.key: {c.value}}}); err != nil {
			t.Fatal(err)
		}
		if got := r.Ended()[0].Parent().SpanID().String() == "0102030405060708"; got != c.found {
			t.Errorf("%s: %s found = %v, want %v", c.key, c.value, got, c.found)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add("traceparent", "00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01")
	f.Add("TraceState", "a=b,c=d")
	tr := Trace{Provider: sdktrace.NewTracerProvider()}
	h := tr.Handler(func(context.Context, *fabric.Message) ([]byte, error) { return nil, nil })
	f.Fuzz(func(t *testing.T, key, value string) {
		_, err := h(t.Context(), &fabric.Message{Header: nats.Header{
			key: {value}, "traceparent": {"00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01"},
		}})
		if err != nil {
			t.Error(err)
		}
	})
}

// Every counter of a node is there, and counts.
func TestObserve(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		reader := sdkmetric.NewManualReader()
		reg, err := Observe(a, sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := a.Send(t.Context(), "a", nil); err != nil {
				t.Fatal(err)
			}
		}
		collect := func() map[string]int64 {
			var data metricdata.ResourceMetrics
			if err := reader.Collect(t.Context(), &data); err != nil {
				t.Fatal(err)
			}
			got := map[string]int64{}
			for _, scope := range data.ScopeMetrics {
				for _, m := range scope.Metrics {
					var points []metricdata.DataPoint[int64]
					switch data := m.Data.(type) {
					case metricdata.Sum[int64]:
						if points = data.DataPoints; !data.IsMonotonic {
							t.Errorf("%s may shrink", m.Name)
						}
					case metricdata.Gauge[int64]:
						points = data.DataPoints
					}
					if len(points) != 1 {
						t.Fatalf("%s is %+v", m.Name, m.Data)
					}
					p := points[0]
					if pid, _ := p.Attributes.Value("fabric.pid"); pid.AsString() != "a" || p.Attributes.Len() != 3 {
						t.Errorf("%s has the attributes %v", m.Name, p.Attributes)
					}
					got[m.Name] = p.Value
				}
			}
			return got
		}
		got := collect()
		fields := reflect.TypeFor[fabric.Stats]()
		if len(got) != fields.NumField() {
			t.Errorf("%d counters for %d fields: %v", len(got), fields.NumField(), got)
		}
		for f := range fields.Fields() {
			want := integer(reflect.ValueOf(a.Stats()).FieldByIndex(f.Index))
			if v, ok := got["fabric.node."+snake(f.Name)]; !ok || v != want {
				t.Errorf("%s counts %d (%v), want %d", f.Name, v, ok, want)
			}
		}
		if got["fabric.node.sent"] != 3 || got["fabric.node.received"] != 3 || got["fabric.node.waiting"] != 3 {
			t.Errorf("three messages are %v", got)
		}
		if err := reg.Unregister(); err != nil || len(collect()) != 0 {
			t.Errorf("after Unregister: %v", err)
		}
	})
}

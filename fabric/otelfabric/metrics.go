package otelfabric

import (
	"context"
	"reflect"
	"strings"
	"unicode"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/natsfabric/natsfabric/fabric"
)

// Observe registers a counter for each field of the node's [fabric.Stats], named
// fabric.node. and the field's name in lower case, with the attributes fabric.cluster,
// fabric.env and fabric.pid. A nil provider is the global one. The counts stay readable
// when the node has closed; Unregister of what Observe returns ends it.
func Observe(node *fabric.Node, provider metric.MeterProvider) (metric.Registration, error) {
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	meter := provider.Meter(scope)
	var counters []metric.Int64Observable
	var fields [][]int
	for _, f := range reflect.VisibleFields(reflect.TypeFor[fabric.Stats]()) {
		if f.Type.Kind() != reflect.Uint64 {
			continue
		}
		c, err := meter.Int64ObservableCounter("fabric.node."+snake(f.Name), metric.WithUnit("{count}"))
		if err != nil {
			return nil, err
		}
		counters, fields = append(counters, c), append(fields, f.Index)
	}
	attributes := metric.WithAttributeSet(attribute.NewSet(
		attribute.String("fabric.cluster", node.Cluster()),
		attribute.String("fabric.env", node.Env()),
		attribute.String("fabric.pid", string(node.PID())),
	))
	observe := func(_ context.Context, o metric.Observer) error {
		stats := reflect.ValueOf(node.Stats())
		for i, c := range counters {
			o.ObserveInt64(c, int64(stats.FieldByIndex(fields[i]).Uint()), attributes)
		}
		return nil
	}
	observables := make([]metric.Observable, len(counters))
	for i, c := range counters {
		observables[i] = c
	}
	return meter.RegisterCallback(observe, observables...)
}

// snake returns a Go name in lower case, its words apart.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

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

// Observe registers a counter for each field of the node's [fabric.Stats] that only
// grows, and a gauge for each that does not, named fabric.node. and the field's name in
// lower case, with the attributes fabric.cluster, fabric.env and fabric.pid. A nil
// provider is the global one. The values stay readable when the node has closed;
// Unregister of what Observe returns ends it.
func Observe(node *fabric.Node, provider metric.MeterProvider) (metric.Registration, error) {
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	meter := provider.Meter(scope)
	var all []observed
	var observables []metric.Observable
	for _, f := range reflect.VisibleFields(reflect.TypeFor[fabric.Stats]()) {
		o := observed{field: f.Index}
		var err error
		switch name, unit := "fabric.node."+snake(f.Name), metric.WithUnit("{count}"); {
		case f.Type.Kind() == reflect.Uint64:
			o.instrument, err = meter.Int64ObservableCounter(name, unit)
		case f.Type.Kind() == reflect.Int:
			o.instrument, err = meter.Int64ObservableGauge(name, unit)
		default:
			continue // a struct is its fields
		}
		if err != nil {
			return nil, err
		}
		all, observables = append(all, o), append(observables, o.instrument)
	}
	attributes := metric.WithAttributeSet(attribute.NewSet(
		attribute.String("fabric.cluster", node.Cluster()),
		attribute.String("fabric.env", node.Env()),
		attribute.String("fabric.pid", string(node.PID())),
	))
	return meter.RegisterCallback(func(_ context.Context, to metric.Observer) error {
		stats := reflect.ValueOf(node.Stats())
		for _, o := range all {
			to.ObserveInt64(o.instrument, integer(stats.FieldByIndex(o.field)), attributes)
		}
		return nil
	}, observables...)
}

// An observed field of Stats.
type observed struct {
	field      []int
	instrument metric.Int64Observable
}

func integer(v reflect.Value) int64 {
	if v.CanUint() {
		return int64(v.Uint())
	}
	return v.Int()
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

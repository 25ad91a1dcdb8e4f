package typed_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/typed"
)

// What this package adds to the codec: a message is encoded, named, found and decoded.
func BenchmarkJSON(b *testing.B) {
	order := Order{Item: "apples"}
	b.Run("codec", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			data, err := json.Marshal(&order)
			if err != nil {
				b.Fatal(err)
			}
			var out Order
			if err := json.Unmarshal(data, &out); err != nil || out != order {
				b.Fatal(err)
			}
		}
	})
	b.Run("typed", func(b *testing.B) {
		x := typed.NewMux(typed.Config{})
		if err := typed.Handle(x, func(_ context.Context, m *typed.Message[Order]) error { return nil }); err != nil {
			b.Fatal(err)
		}
		to := muxed{x}
		b.ReportAllocs()
		for b.Loop() {
			if err := typed.Send(b.Context(), to, "b", order); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A muxed sender hands what is sent to a mux.
type muxed struct{ x *typed.Mux }

func (s muxed) SendMsg(ctx context.Context, m *fabric.Message) error {
	_, err := s.x.Serve(ctx, m)
	return err
}

func (s muxed) RequestMsg(context.Context, *fabric.Message) (*fabric.Message, error) { return nil, nil }

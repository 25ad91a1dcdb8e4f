package protobuf_test

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/typed"
	"github.com/natsfabric/natsfabric/fabric/typed/protobuf"
)

// A wire hands what is sent to a mux, and keeps it.
type wire struct {
	mux  *typed.Mux
	last *fabric.Message
}

func (w *wire) SendMsg(ctx context.Context, m *fabric.Message) error {
	w.last = m
	_, err := w.mux.Serve(ctx, m)
	return err
}

func (w *wire) RequestMsg(context.Context, *fabric.Message) (*fabric.Message, error) {
	return nil, errors.New("not in this test")
}

func TestSend(t *testing.T) {
	var got []proto.Message
	x := typed.NewMux(typed.Config{Codecs: []typed.Codec{protobuf.Codec{}}})
	err := errors.Join(
		typed.Handle(x, func(_ context.Context, m *typed.Message[*structpb.Struct]) error {
			got = append(got, m.Value)
			return nil
		}),
		typed.Handle(x, func(_ context.Context, m *typed.Message[*wrapperspb.StringValue]) error {
			got = append(got, m.Value)
			return nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{mux: x}
	doc, err := structpb.NewStruct(map[string]any{"a": 1.5, "b": []any{"c", nil}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		protobuf.Send(t.Context(), w, "b", doc),
		protobuf.Broadcast(t.Context(), w, wrapperspb.String("x")),
	); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || !proto.Equal(got[0], doc) || !proto.Equal(got[1], wrapperspb.String("x")) {
		t.Errorf("received %v", got)
	}
	if w.last.To != fabric.Everyone || w.last.Type[0] != 'P' {
		t.Errorf("broadcast %+v", w.last)
	}
	if err := protobuf.Send[*structpb.Struct](t.Context(), w, "b", nil); !errors.Is(err, typed.ErrEncode) {
		t.Errorf("a nil message: %v, want ErrEncode", err)
	}
	if err := protobuf.Send(t.Context(), w, "b", wrapperspb.String("\xff")); !errors.Is(err, typed.ErrEncode) {
		t.Errorf("a string that is not UTF-8: %v, want ErrEncode", err)
	}
	w.last.Data = []byte("\x0a\x05x")
	if _, err := x.Serve(t.Context(), w.last); !errors.Is(err, typed.ErrDecode) {
		t.Errorf("a cut message: %v, want ErrDecode", err)
	}
	plain := typed.NewMux(typed.Config{})
	if _, err := plain.Serve(t.Context(), w.last); !errors.Is(err, typed.ErrUnknownCodec) {
		t.Errorf("a mux without the codec: %v, want ErrUnknownCodec", err)
	}
}

func TestTypeName(t *testing.T) {
	for typ, want := range map[reflect.Type]string{
		reflect.TypeFor[structpb.Struct]():  "google.protobuf.Struct",
		reflect.TypeFor[*structpb.Struct](): "",
		reflect.TypeFor[proto.Message]():    "",
		reflect.TypeFor[string]():           "",
		reflect.TypeFor[struct{}]():         "",
	} {
		if got, ok := (protobuf.Codec{}).TypeName(typ); got != want || ok != (want != "") {
			t.Errorf("TypeName(%v) = %q, %v; want %q", typ, got, ok, want)
		}
	}
}

// Whatever arrives is decoded or refused.
func FuzzServe(f *testing.F) {
	x := typed.NewMux(typed.Config{Codecs: []typed.Codec{protobuf.Codec{}}})
	if err := typed.Handle(x, func(_ context.Context, m *typed.Message[*structpb.Struct]) error {
		if _, err := proto.Marshal(m.Value); err != nil {
			panic(err) // it was decoded
		}
		return nil
	}); err != nil {
		f.Fatal(err)
	}
	w := &wire{mux: x}
	doc, err := structpb.NewStruct(map[string]any{"a": 1.5, "b": []any{"c", nil}})
	if err != nil {
		f.Fatal(err)
	}
	if err := protobuf.Send(f.Context(), w, "b", doc); err != nil {
		f.Fatal(err)
	}
	f.Add(w.last.Data)
	f.Add([]byte("\x0a\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := x.Stats()
		_, err := x.Serve(t.Context(), &fabric.Message{Type: w.last.Type, Data: data})
		after := x.Stats()
		if handled := after.Handled > before.Handled; handled != (err == nil) || !handled && after.Undecodable != before.Undecodable+1 {
			t.Errorf("%x: %v, and %+v became %+v", data, err, before, after)
		}
	})
}

package typed_test

import (
	"context"
	"errors"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/typed"
)

// A mean type panics when it is decoded.
type mean struct{}

func (*mean) UnmarshalJSON([]byte) error { panic("mean") }

func TestPanicInADecoder(t *testing.T) {
	x := typed.NewMux(typed.Config{})
	echo[mean](t, x)
	_, err := x.Serve(t.Context(), &fabric.Message{Type: typeOf(t, typed.JSON{}, mean{}), Data: []byte("{}")})
	if !errors.Is(err, typed.ErrDecode) || x.Stats().Undecodable != 1 {
		t.Errorf("Serve = %v, want ErrDecode", err)
	}
}

// Whatever arrives, a mux handles it or refuses it, and counts it.
func FuzzServe(f *testing.F) {
	x := typed.NewMux(typed.Config{})
	handled := 0
	fuzzed(f, x, &handled, nil, &nested{Name: "n", Of: map[string][]nested{"x": {}}})
	fuzzed(f, x, &handled, nil, []map[string]int{{"a": 1}})
	fuzzServe(f, x, &handled)
}

// Gob is left out where maps are: what those claim to hold, encoding/gob allocates.
func FuzzServeGob(f *testing.F) {
	x := typed.NewMux(typed.Config{Codecs: []typed.Codec{typed.Gob{}}})
	handled := 0
	fuzzed(f, x, &handled, typed.Gob{}, [][]struct{ A, B *string }{{{}, {B: new("b")}}})
	fuzzServe(f, x, &handled)
}

func fuzzServe(f *testing.F, x *typed.Mux, count *int) {
	fuzzed(f, x, count, nil, "s")
	fuzzed(f, x, count, typed.JSON{}, []byte("s"))
	fuzzed(f, x, count, typed.JSON{}, page[id]{[]id{"1", "2"}})
	fuzzed(f, x, count, nil, time.Unix(1, 2))
	fuzzed(f, x, count, typed.Gob{}, []int{1, 2})
	f.Add("", []byte("plain"))
	f.Add("G00000000000", []byte("\x03\xff\x80\x00"))
	f.Add(typeOf(f, typed.JSON{}, page[id]{}), []byte(`{"Items":7}`))
	f.Fuzz(func(t *testing.T, typ string, data []byte) {
		before, was, handled := x.Stats(), *count, count
		answer, err := x.Serve(t.Context(), &fabric.Message{Type: typ, Data: data})
		after := x.Stats()
		refused := after.UnknownType + after.UnknownCodec + after.Undecodable - before.UnknownType - before.UnknownCodec - before.Undecodable
		switch {
		case answer != nil:
			t.Errorf("a message that is no request was answered %q", answer)
		case err == nil && (*handled != was+1 || after.Handled != before.Handled+1 || refused != 0):
			t.Errorf("%s: no error, but %+v became %+v", typ, before, after)
		case err != nil && (*handled != was || refused != 1):
			t.Errorf("%s: %v, but %+v became %+v", typ, err, before, after)
		case err != nil && !errors.Is(err, typed.ErrUnknownType) && !errors.Is(err, typed.ErrUnknownCodec) && !errors.Is(err, typed.ErrDecode):
			t.Errorf("%s: %v is none of ours", typ, err)
		}
	})
}

// fuzzed handles T, and adds v in the codec to the corpus.
func fuzzed[T any](f *testing.F, x *typed.Mux, handled *int, c typed.Codec, v T) {
	err := typed.Handle(x, func(_ context.Context, m *typed.Message[T]) error {
		*handled++
		if reflect.TypeFor[T]().Kind() == reflect.Pointer && reflect.ValueOf(m.Value).IsNil() {
			panic("a nil pointer")
		}
		return nil
	})
	if err != nil {
		f.Fatal(err)
	}
	var s sink
	if err := typed.SendMsg(f.Context(), &s, &typed.Message[T]{Value: v, Codec: c}); err != nil {
		f.Fatal(err)
	}
	f.Add(s.m.Type, s.m.Data)
	f.Add(s.m.Type, []byte("null"))
}

// A message is one value and nothing else, whatever the codec.
func TestBytesAfterTheValue(t *testing.T) {
	for _, c := range []typed.Codec{typed.JSON{}, typed.Gob{}} {
		var s sink
		if err := typed.SendMsg(t.Context(), &s, &typed.Message[[]int]{Value: []int{1}, Codec: c}); err != nil {
			t.Fatal(err)
		}
		if got, err := typed.Decode[[]int](s.m, c); err != nil || len(got) != 1 {
			t.Errorf("%T: %v, %v", c, got, err)
		}
		s.m.Data = append(s.m.Data, 'x')
		if got, err := typed.Decode[[]int](s.m, c); !errors.Is(err, typed.ErrDecode) || got != nil {
			t.Errorf("%T with a byte more: %v, %v; want ErrDecode", c, got, err)
		}
		if _, err := typed.Decode[[]string](s.m, c); !errors.Is(err, typed.ErrUnknownType) {
			t.Errorf("%T as another type: %v", c, err)
		}
	}
}

// A short message that claims to hold 3 GiB does not take them. (A map in gob would.)
func TestClaimsAllocateLittle(t *testing.T) {
	x := typed.NewMux(typed.Config{Codecs: []typed.Codec{typed.Gob{}}})
	echo[[]byte](t, x)
	echo[[]int](t, x)
	for name, m := range map[string]*fabric.Message{
		// The length of the gob message itself, and then of what is in it.
		"message": {Type: typeOf(t, typed.Gob{}, []byte{}), Data: []byte("\xfc\xc0\x00\x00\x00\x0a\x00\xfc\xc0\x00\x00\x00")},
		"bytes":   claim(t, []byte("a"), 1),
		"ints":    claim(t, []int{1}, 1),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := x.Serve(t.Context(), m)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 16<<20 || !errors.Is(err, typed.ErrDecode) {
			t.Errorf("%s: %d bytes allocated, %v; want less than 16 MiB and ErrDecode", name, got, err)
		}
	}
}

// claim returns v in gob, but with a count of 3 Gi where there are n bytes left.
func claim[T any](t *testing.T, v T, n int) *fabric.Message {
	t.Helper()
	var s sink
	if err := typed.SendMsg(t.Context(), &s, &typed.Message[T]{Value: v, Codec: typed.Gob{}}); err != nil {
		t.Fatal(err)
	}
	data := s.m.Data
	last := 0 // where the last of the stream's messages begins
	for i := 0; i < len(data); i += 1 + int(data[i]) {
		last = i
	}
	at := len(data) - n - 1
	if data[at] != 1 {
		t.Fatalf("%T: no count of 1 at %d of %x", v, at, data)
	}
	out := append(append([]byte(nil), data[:at]...), 0xfc, 0xc0, 0, 0, 0)
	out = append(out, data[at+1:]...)
	out[last] += 4
	return &fabric.Message{Type: s.m.Type, Data: out}
}

package channel

import (
	"bytes"
	"encoding/gob"
	"errors"
	"math"
	"reflect"
	"testing"
)

type registered struct{ A int }

func TestContent(t *testing.T) {
	gob.Register(registered{})
	for _, c := range []struct {
		content Content
		msg     any
		want    any
		kind    byte
	}{
		{Content{}, "héllo", "héllo", 's'},
		{Content{}, []byte{0, 255}, []byte{0, 255}, 'b'},
		{Content{}, nil, nil, 'n'},
		{Content{}, true, true, '0'},
		{Content{}, math.MinInt64, math.MinInt64, '1'},
		{Content{}, uint64(math.MaxUint64), uint64(math.MaxUint64), 'A'},
		{Content{}, []float64{0.1, -1}, []float64{0.1, -1}, 'O'},
		{Content{}, []string{"a", ""}, []string{"a", ""}, 'P'},
		{Content{}, map[string]any{"a": []any{1.5, nil}}, map[string]any{"a": []any{1.5, nil}}, 'S'},
		{Content{Gob: true}, registered{7}, registered{7}, 'g'},
		{Content{Gob: true}, 7, 7, '1'},
		{Content{Untyped: true}, 7, 7.0, 'j'},
		{Content{Untyped: true}, "x", "x", 's'},
		{Content{Untyped: true}, []byte("x"), "eA==", 'j'},
		{Content{Untyped: true}, registered{7}, map[string]any{"A": 7.0}, 'j'},
	} {
		kind, data, err := c.content.encode(c.msg)
		if err != nil || kind != c.kind {
			t.Errorf("encode(%#v) has kind %c, %v; want %c", c.msg, kind, err, c.kind)
			continue
		}
		if got, err := c.content.decode(kind, data); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%#v arrives as %#v, %v; want %#v", c.msg, got, err, c.want)
		}
	}
	for _, msg := range []any{registered{}, func() {}, &registered{}, math.NaN(), complex(1, 1)} {
		if _, _, err := (Content{}).encode(msg); err == nil {
			t.Errorf("encode(%#v) has no error", msg)
		}
	}
	_, data, err := Content{Gob: true}.encode(registered{7})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (Content{}).decode('g', data); !errors.Is(err, errType) {
		t.Errorf("gob that was not allowed is %v, %v", got, err)
	}
}

func TestType(t *testing.T) {
	for id, want := range map[int64]string{0: "s", 1: "s2", -1: "s1", 31: "s10", math.MaxInt64: "sLygHa16AHYE", math.MinInt64: "sLygHa16AHYF"} {
		for _, all := range []bool{false, true} {
			in := tag{all, 's', id}
			if got := in.String(); got[1:] != want || (got[0] == toAll) != all {
				t.Errorf("the Type of %v is %s, want _%s", in, got, want)
			}
			if back, ok := parseType(in.String()); back != in || !ok {
				t.Errorf("%v came back as %v, %v", in, back, ok)
			}
		}
	}
	for _, s := range []string{"C", "D", "Ds", "Cs0", "Cs01", "CsLygHa16AHYG", "CsLygHa16AHYFF", "Cs-1"} {
		if got, ok := parseType(s); ok {
			t.Errorf("parseType(%s) = %v", s, got)
		}
	}
}

// What is accepted says what it means in one way only, and nothing that arrives
// panics. (Gob is only for peers that are trusted.)
func FuzzDecode(f *testing.F) {
	for _, msg := range []any{"x", []byte("x"), nil, 1, []string{"a"}, map[string]any{"a": 1.0}, []uint16{1}} {
		for _, c := range []Content{{}, {Untyped: true}} {
			kind, data, err := c.encode(msg)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(tag{kind: kind, id: 7}.String(), data)
		}
	}
	f.Add("", []byte("plain"))
	f.Add("Cg", []byte("\x01"))
	f.Fuzz(func(t *testing.T, typ string, data []byte) {
		parsed, ok := parseType(typ)
		if !ok {
			return
		}
		kind := parsed.kind
		if back := parsed.String(); back != typ && typ != "" {
			t.Errorf("%q is understood as %q", typ, back)
		}
		msg, err := Content{}.decode(kind, bytes.Clone(data))
		if err != nil {
			return
		}
		k2, d2, err := Content{Untyped: kind == kindJSON}.encode(msg)
		if err != nil {
			t.Fatalf("%q of kind %c is %#v, which cannot be encoded: %v", data, kind, msg, err)
		}
		again, err := Content{}.decode(k2, d2)
		if err != nil || !reflect.DeepEqual(again, msg) {
			t.Errorf("%q of kind %c is %#v, which comes back as %#v, %v", data, kind, msg, again, err)
		}
	})
}

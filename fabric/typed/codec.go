package typed

import (
	"bytes"
	"encoding"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"reflect"
)

// A Codec makes bytes of values and values of bytes. The ones of this module are
// [Raw], [JSON], [Gob] and protobuf.Codec. It must be safe for concurrent use.
type Codec interface {
	// ID is an ASCII letter or digit that no other codec in use has. It is the first
	// of a message's Type. R, J, G and P are taken.
	ID() byte
	// TypeName returns the name by which the type is known on the wire, in most
	// cases [GoName], or false if this codec does not carry it. t is no pointer.
	TypeName(t reflect.Type) (name string, ok bool)
	// Marshal encodes what v points to. v is a pointer to a type that TypeName
	// accepts, never nil.
	Marshal(v any) ([]byte, error)
	// Unmarshal decodes data, which it may keep, into the zero value that v points
	// to. It should check that data ends where the value does.
	Unmarshal(data []byte, v any) error
}

// Raw carries strings and byte slices, and types made of them, as they are.
type Raw struct{}

// ID returns 'R'.
func (Raw) ID() byte { return 'R' }

// TypeName accepts strings and byte slices.
func (Raw) TypeName(t reflect.Type) (string, bool) {
	if t.Kind() != reflect.String && (t.Kind() != reflect.Slice || t.Elem().Kind() != reflect.Uint8) {
		return "", false
	}
	return GoName(t), true
}

// Marshal returns the bytes that v points to, not a copy.
func (Raw) Marshal(v any) ([]byte, error) {
	switch v := v.(type) {
	case *[]byte:
		return *v, nil
	case *string:
		return []byte(*v), nil
	}
	e := reflect.ValueOf(v).Elem()
	if e.Kind() == reflect.String {
		return []byte(e.String()), nil
	}
	return e.Bytes(), nil
}

// Unmarshal sets what v points to, to data itself if it is a byte slice.
func (Raw) Unmarshal(data []byte, v any) error {
	e := reflect.ValueOf(v).Elem()
	if e.Kind() == reflect.String {
		e.SetString(string(data))
	} else {
		e.SetBytes(data)
	}
	return nil
}

// JSON is encoding/json: fields that a receiver does not know are ignored, fields
// that a sender does not know are zero.
type JSON struct{}

// ID returns 'J'.
func (JSON) ID() byte { return 'J' }

// TypeName accepts what can be concrete data. That a field inside cannot is found
// by Marshal.
func (JSON) TypeName(t reflect.Type) (string, bool) { return GoName(t), concrete(t) }

// Marshal is json.Marshal.
func (JSON) Marshal(v any) ([]byte, error) { return json.Marshal(v) }

// Unmarshal is json.Unmarshal.
func (JSON) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// Gob is encoding/gob, with the description of the type in every message. It is for
// peers that are trusted with the process: gob is not hardened against hostile
// input. A message of 30 bytes that claims a map of a billion entries takes the memory
// for them. It is slower than JSON.
type Gob struct{}

// ID returns 'G'.
func (Gob) ID() byte { return 'G' }

// TypeName accepts what gob can encode at the top: a struct needs exported fields.
func (Gob) TypeName(t reflect.Type) (string, bool) {
	if !concrete(t) || t.Kind() == reflect.Struct && !hasExported(t) && !encodesItself(t) {
		return "", false
	}
	return GoName(t), true
}

// Marshal encodes v as a gob stream of one value.
func (Gob) Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Unmarshal decodes a gob stream of one value.
func (Gob) Unmarshal(data []byte, v any) error {
	r := bytes.NewReader(data)
	if err := gob.NewDecoder(r).Decode(v); err != nil {
		return err
	}
	if r.Len() > 0 {
		return fmt.Errorf("%d bytes after the value", r.Len())
	}
	return nil
}

// concrete reports whether values of t are data by themselves: no pointer,
// interface, function or channel.
func concrete(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Interface, reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return false
	}
	return true
}

func hasExported(t reflect.Type) bool {
	for f := range t.Fields() {
		if f.IsExported() {
			return true
		}
	}
	return false
}

func encodesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[gob.GobEncoder]()) || p.Implements(reflect.TypeFor[encoding.BinaryMarshaler]())
}

// builtin are the codecs that everyone takes, in the order in which they are chosen.
var builtin = []Codec{Raw{}, JSON{}}

// choose returns the codec for a type, and what the type is called: the preferred
// codec if that is not nil and carries it, else, but for a strict preference, the
// first of builtin that does.
func choose(t reflect.Type, preferred Codec, strict bool) (c Codec, name string, ok bool) {
	if preferred != nil {
		if name, ok := preferred.TypeName(t); ok || strict {
			return preferred, name, ok
		}
	}
	for _, c := range builtin {
		if name, ok := c.TypeName(t); ok {
			return c, name, true
		}
	}
	return nil, "", false
}

// unmarshal calls c. A panic there, of a method of the user's or of the codec's, is an
// error: what arrives must not end the process.
func unmarshal(c Codec, data []byte, v any) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return c.Unmarshal(data, v)
}

package typed

import (
	"reflect"

	"github.com/natsfabric/natsfabric/fabric"
)

// A Message is a [fabric.Message] that is a T.
type Message[T any] struct {
	// Message is what else there is to a message: To, Mode, Ack, Header and ID of one
	// to be sent, and everything of a received one. Data and Type are the codec's.
	*fabric.Message
	Value T
	// Codec encodes Value, and is taken for the answer, too. Default: [Raw] for
	// strings and byte slices, [JSON] for everything else. Of a received message it
	// is the one it came in.
	Codec Codec
}

// base returns the type that T, or what T points to, is.
func base[T any]() (t reflect.Type, pointer bool) {
	t = reflect.TypeFor[T]()
	if t.Kind() == reflect.Pointer {
		return t.Elem(), true
	}
	return t, false
}

// encode returns v as a message's Type and Data, in the codec that choose finds, or
// in no other than c if that is not nil and strict is set.
func encode[T any](c Codec, strict bool, v T) (typ string, data []byte, err error) {
	t, pointer := base[T]()
	chosen, name, ok := choose(t, c, strict)
	if !ok {
		return "", nil, refuse(ErrEncode, "no codec carries the type %v", t)
	}
	p := any(&v)
	if pointer {
		if p = v; reflect.ValueOf(v).IsNil() {
			return "", nil, refuse(ErrEncode, "the pointer is nil")
		}
	}
	if data, err = chosen.Marshal(p); err != nil {
		return "", nil, refuse(ErrEncode, "%v", err)
	}
	return label(chosen, name), data, nil
}

// decode returns the value that data is in the codec.
func decode[T any](c Codec, data []byte) (v T, err error) {
	t, pointer := base[T]()
	p := any(&v)
	if pointer {
		p = reflect.New(t).Interface()
		v = p.(T)
	}
	if err := unmarshal(c, data, p); err != nil {
		var zero T
		return zero, refuse(ErrDecode, "%v", err)
	}
	return v, nil
}

// find returns the codec of a message's Type if it is among the given ones or built in.
func find(typ string, codecs ...Codec) (Codec, error) {
	if len(typ) != labelLen {
		return nil, refuse(ErrUnknownType, "type %q is none of this package's", typ)
	}
	for _, list := range [...][]Codec{codecs, builtin} {
		for _, c := range list {
			if c != nil && c.ID() == typ[0] {
				return c, nil
			}
		}
	}
	return nil, refuse(ErrUnknownCodec, "codec %q is not taken", typ[:1])
}

// Decode returns what m, received by other means than a [Mux], is, if it was sent as
// a T in one of the codecs, [Raw] or [JSON]. Otherwise the error wraps [ErrUnknownType],
// [ErrUnknownCodec] or [ErrDecode]; the value is then zero. If it is returned by a
// handler, the sender is told. A []byte may share memory with m.Data.
func Decode[T any](m *fabric.Message, codecs ...Codec) (T, error) {
	var zero T
	c, err := find(m.Type, codecs...)
	if err != nil {
		return zero, err
	}
	t, _ := base[T]()
	if name, ok := c.TypeName(t); !ok || label(c, name) != m.Type {
		return zero, refuse(ErrUnknownType, "type %s is not %v", m.Type, t)
	}
	return decode[T](c, m.Data)
}

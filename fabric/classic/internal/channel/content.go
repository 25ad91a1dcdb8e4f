package channel

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// What the Type of every envelope begins with.
const (
	toOne = 'C'
	toAll = 'B'
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

const (
	kindString = 's'
	kindBytes  = 'b'
	kindNil    = 'n'
	kindGob    = 'g'
	kindJSON   = 'j'
)

// basics are the types that arrive as what they are without being registered, as in
// gob. Their places stand on the wire: a new one goes to the end, at most 36.
var basics = [...]reflect.Type{
	reflect.TypeFor[bool](), reflect.TypeFor[int](), reflect.TypeFor[int8](), reflect.TypeFor[int16](),
	reflect.TypeFor[int32](), reflect.TypeFor[int64](), reflect.TypeFor[uint](), reflect.TypeFor[uint8](),
	reflect.TypeFor[uint16](), reflect.TypeFor[uint32](), reflect.TypeFor[uint64](), reflect.TypeFor[float32](),
	reflect.TypeFor[float64](), reflect.TypeFor[[]bool](), reflect.TypeFor[[]int](), reflect.TypeFor[[]int8](),
	reflect.TypeFor[[]int16](), reflect.TypeFor[[]int32](), reflect.TypeFor[[]int64](), reflect.TypeFor[[]uint](),
	reflect.TypeFor[[]uint16](), reflect.TypeFor[[]uint32](), reflect.TypeFor[[]uint64](), reflect.TypeFor[[]float32](),
	reflect.TypeFor[[]float64](), reflect.TypeFor[[]string](), reflect.TypeFor[map[string]string](),
	reflect.TypeFor[map[string]int](), reflect.TypeFor[map[string]any](), reflect.TypeFor[[]any](),
}

// A Content says how values become bytes.
type Content struct {
	// Untyped has all values but strings encoded in JSON and decoded without a type.
	Untyped bool
	// Gob has other types than basics sent, and taken, in gob, where programs register
	// them.
	Gob bool
}

var errType = errors.New("a value of this type cannot be sent")

// encode returns msg as a kind and bytes.
func (c Content) encode(msg any) (kind byte, data []byte, err error) {
	switch v := msg.(type) {
	case string:
		return kindString, []byte(v), nil
	case nil:
		return kindNil, nil, nil
	case []byte:
		if !c.Untyped {
			return kindBytes, v, nil
		}
	}
	if c.Untyped {
		data, err = json.Marshal(msg)
		return kindJSON, data, err
	}
	t := reflect.TypeOf(msg)
	for i, b := range basics {
		if b == t {
			data, err = json.Marshal(msg)
			return base62[i], data, err
		}
	}
	if !c.Gob {
		return 0, nil, fmt.Errorf("%w: %v; Config.Gob allows it", errType, t)
	}
	var b bytes.Buffer
	err = gob.NewEncoder(&b).Encode(&msg) // the pointer has it sent as an interface: with its name
	return kindGob, b.Bytes(), err
}

// decode is the reverse of encode.
func (c Content) decode(kind byte, data []byte) (msg any, err error) {
	switch kind {
	case kindString:
		return string(data), nil
	case kindBytes:
		return data, nil
	case kindNil:
		if len(data) > 0 {
			return nil, fmt.Errorf("%d bytes that are nil", len(data))
		}
		return nil, nil
	case kindJSON:
		err = json.Unmarshal(data, &msg)
		return msg, err
	case kindGob:
		if !c.Gob {
			return nil, fmt.Errorf("%w: it is gob; Config.Gob allows it", errType)
		}
		defer func() {
			if p := recover(); p != nil { // in a method of a registered type
				msg, err = nil, fmt.Errorf("panic: %v", p)
			}
		}()
		err = gob.NewDecoder(bytes.NewReader(data)).Decode(&msg)
		return msg, err
	}
	i := strings.IndexByte(base62, kind)
	if i < 0 || i >= len(basics) {
		return nil, fmt.Errorf("%w: kind %q", errType, kind)
	}
	v := reflect.New(basics[i])
	if err := json.Unmarshal(data, v.Interface()); err != nil {
		return nil, err
	}
	return v.Elem().Interface(), nil
}

// A tag is what the Type of a message says.
type tag struct {
	all  bool
	kind byte
	id   int64
}

// String returns the Type.
func (t tag) String() string {
	n := uint64(t.id)<<1 ^ uint64(t.id>>63)
	var b [13]byte
	i := len(b)
	for ; n > 0; n /= 62 {
		i--
		b[i] = base62[n%62]
	}
	head := []byte{toOne, t.kind}
	if t.all {
		head[0] = toAll
	}
	return string(append(head, b[i:]...))
}

// parseType is the reverse of tag.String, and accepts nothing else but the empty
// string.
func parseType(s string) (t tag, ok bool) {
	if s == "" {
		return tag{kind: kindBytes}, true
	}
	if len(s) < 2 || len(s) > 13 || s[0] != toOne && s[0] != toAll || len(s) > 2 && s[2] == '0' {
		return tag{}, false
	}
	var n uint64
	for i := 2; i < len(s); i++ {
		d := strings.IndexByte(base62, s[i])
		if d < 0 || n > (1<<64-1-uint64(d))/62 {
			return tag{}, false
		}
		n = n*62 + uint64(d)
	}
	return tag{s[0] == toAll, s[1], int64(n>>1) ^ -int64(n&1)}, true
}

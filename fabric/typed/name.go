package typed

import (
	"reflect"
	"strconv"
	"strings"
)

// A Namer is a type that says what it is called on the wire, because the programs
// that exchange it have it in different packages or under different names. It must
// not look at the value.
type Namer interface{ FabricType() string }

var namer = reflect.TypeFor[Namer]()

// GoName returns what t is called on the wire, for a [Codec] without names of its own:
// what its method FabricType returns, else its package and name, else what it is made
// of. It is the same in every program that has the same type.
func GoName(t reflect.Type) string {
	if t.Kind() != reflect.Interface && t.Kind() != reflect.Pointer && reflect.PointerTo(t).Implements(namer) {
		return reflect.New(t).Interface().(Namer).FabricType()
	}
	if t.Name() != "" {
		if t.PkgPath() == "" {
			return t.Name()
		}
		return t.PkgPath() + "." + t.Name()
	}
	switch t.Kind() {
	case reflect.Pointer:
		return "*" + GoName(t.Elem())
	case reflect.Slice:
		return "[]" + GoName(t.Elem())
	case reflect.Array:
		return "[" + strconv.Itoa(t.Len()) + "]" + GoName(t.Elem())
	case reflect.Map:
		return "map[" + GoName(t.Key()) + "]" + GoName(t.Elem())
	case reflect.Struct:
		var b strings.Builder
		b.WriteString("struct{")
		for f := range t.Fields() {
			b.WriteString(f.Name + " " + GoName(f.Type) + " " + strconv.Quote(string(f.Tag)) + ";")
		}
		b.WriteString("}")
		return b.String()
	}
	return t.String() // never data: a codec refuses it
}

const (
	base62   = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	hashLen  = 11 // 62^11 > 2^64
	labelLen = 1 + hashLen
)

// label returns the Type of a message: the codec, then the FNV-1a hash of the name in
// base 62.
func label(c Codec, name string) string {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	var b [labelLen]byte
	b[0] = c.ID()
	for i := labelLen - 1; i > 0; i-- {
		b[i] = base62[h%62]
		h /= 62
	}
	return string(b[:])
}

// Package protobuf lets package typed send and handle protocol buffers. It is apart
// because of what it depends on.
//
//	stock, err := protobuf.Call[*pb.Query, *pb.Stock](ctx, node, "stock", &pb.Query{Item: "apples"})
//
// and on the other side
//
//	mux := typed.NewMux(typed.Config{Codecs: []typed.Codec{protobuf.Codec{}}})
//	typed.HandleCall(mux, func(ctx context.Context, m *typed.Message[*pb.Query]) (*pb.Stock, error) { ... })
//
// A message is known by its full name in the .proto file, so programs in which the
// generated Go code is in different packages understand each other.
package protobuf

import (
	"context"
	"reflect"

	"google.golang.org/protobuf/proto"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/typed"
)

// Codec carries generated protocol buffers, in the binary form. It is a
// [typed.Codec].
type Codec struct{}

var message = reflect.TypeFor[proto.Message]()

// ID returns 'P'.
func (Codec) ID() byte { return 'P' }

// TypeName accepts structs whose pointers are a [proto.Message], and returns the
// message's full name.
func (Codec) TypeName(t reflect.Type) (string, bool) {
	if t.Kind() != reflect.Struct || !reflect.PointerTo(t).Implements(message) {
		return "", false
	}
	m := reflect.New(t).Interface().(proto.Message)
	return string(m.ProtoReflect().Descriptor().FullName()), true
}

// Marshal is proto.Marshal.
func (Codec) Marshal(v any) ([]byte, error) { return proto.Marshal(v.(proto.Message)) }

// Unmarshal is proto.Unmarshal. Fields that are not known are kept.
func (Codec) Unmarshal(data []byte, v any) error { return proto.Unmarshal(data, v.(proto.Message)) }

// Send is [typed.Send] with this codec.
func Send[M proto.Message](ctx context.Context, n typed.Sender, to fabric.PID, m M) error {
	return typed.SendMsg(ctx, n, wrap(to, m))
}

// Broadcast is [typed.Broadcast] with this codec.
func Broadcast[M proto.Message](ctx context.Context, n typed.Sender, m M) error {
	return Send(ctx, n, fabric.Everyone, m)
}

// Call is [typed.Call] with this codec.
func Call[Req, Resp proto.Message](ctx context.Context, n typed.Sender, to fabric.PID, req Req) (Resp, error) {
	return typed.CallMsg[Req, Resp](ctx, n, wrap(to, req))
}

func wrap[M proto.Message](to fabric.PID, m M) *typed.Message[M] {
	return &typed.Message[M]{Message: &fabric.Message{To: to}, Value: m, Codec: Codec{}}
}

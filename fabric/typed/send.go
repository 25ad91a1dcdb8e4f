package typed

import (
	"context"

	"github.com/natsfabric/natsfabric/fabric"
)

// A Sender is what values are sent with: a [*fabric.Node], or one with middleware.
type Sender interface {
	SendMsg(ctx context.Context, m *fabric.Message) error
	RequestMsg(ctx context.Context, m *fabric.Message) (*fabric.Message, error)
}

// Send sends v to the process to, in the node's mode. Its errors are those of
// [fabric.Node.SendMsg], and [ErrEncode].
func Send[T any](ctx context.Context, n Sender, to fabric.PID, v T) error {
	return SendMsg(ctx, n, &Message[T]{Message: &fabric.Message{To: to}, Value: v})
}

// Broadcast sends v to all members but this one.
func Broadcast[T any](ctx context.Context, n Sender, v T) error {
	return Send(ctx, n, fabric.Everyone, v)
}

// SendMsg is [Send] or, with To [fabric.Everyone], [Broadcast], with what else a message
// can have. It does not change m.
func SendMsg[T any](ctx context.Context, n Sender, m *Message[T]) error {
	out, name, err := m.outgoing()
	if err != nil {
		return err
	}
	if err := n.SendMsg(ctx, out); err != nil {
		return explain(err, name)
	}
	return nil
}

// Call sends req to the process to and waits for its answer. Its errors are those of
// [fabric.Node.RequestMsg], and [ErrEncode], [ErrUnknownType], [ErrUnknownCodec] and
// [ErrDecode]: of the request if they wrap a [*fabric.RemoteError], otherwise of the
// answer. If the handler has no answer to give, as those of [Handle], Resp is struct{}.
func Call[Req, Resp any](ctx context.Context, n Sender, to fabric.PID, req Req) (Resp, error) {
	return CallMsg[Req, Resp](ctx, n, &Message[Req]{Message: &fabric.Message{To: to}, Value: req})
}

// CallMsg is [Call] with what else a message can have. It does not change m.
func CallMsg[Req, Resp any](ctx context.Context, n Sender, m *Message[Req]) (Resp, error) {
	var zero Resp
	out, name, err := m.outgoing()
	if err != nil {
		return zero, err
	}
	answer, err := n.RequestMsg(ctx, out)
	if err != nil {
		return zero, explain(err, name)
	}
	v, err := Decode[Resp](answer, m.Codec)
	if err != nil {
		return zero, local(err, "answer of "+string(m.To))
	}
	return v, nil
}

// outgoing returns m as bytes, and the name of its type.
func (m *Message[T]) outgoing() (out *fabric.Message, name string, err error) {
	out = &fabric.Message{}
	if m.Message != nil {
		*out = *m.Message
	}
	t, _ := base[T]()
	name = GoName(t)
	if out.Type, out.Data, err = encode(m.Codec, true, m.Value); err != nil {
		return nil, name, local(err, name)
	}
	return out, name, nil
}

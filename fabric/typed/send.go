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

// Publish sends v to those who have joined a topic, but this node, as
// [fabric.Node.Publish] does.
func Publish[T any](ctx context.Context, n Sender, topic string, v T) error {
	return SendMsg(ctx, n, &Message[T]{Message: &fabric.Message{Topic: topic}, Value: v})
}

// SendMsg is [Send] or, with To [fabric.Everyone], [Broadcast], with what else a message
// can have. It does not change m.
func SendMsg[T any](ctx context.Context, n Sender, m *Message[T]) error {
	out, err := m.outgoing()
	if err != nil {
		return err
	}
	if err := n.SendMsg(ctx, out); err != nil {
		return explain(err, nameOf[T]())
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
	return call[Req, Resp](ctx, m, n.RequestMsg)
}

// An Anycaster asks one of those who serve a service. A [*fabric.Node] is one.
type Anycaster interface {
	AnycastMsg(ctx context.Context, service string, m *fabric.Message) (*fabric.Message, error)
}

// Anycast is [Call] of one of the nodes that serve a service, for example with
//
//	node.Serve(ctx, service, 4, mux.Serve)
//
// Its errors are those of [Call], but from [fabric.Node.Anycast].
func Anycast[Req, Resp any](ctx context.Context, n Anycaster, service string, req Req) (Resp, error) {
	return call[Req, Resp](ctx, &Message[Req]{Value: req}, func(ctx context.Context, m *fabric.Message) (*fabric.Message, error) {
		return n.AnycastMsg(ctx, service, m)
	})
}

func call[Req, Resp any](ctx context.Context, m *Message[Req], ask func(context.Context, *fabric.Message) (*fabric.Message, error)) (Resp, error) {
	var zero Resp
	out, err := m.outgoing()
	if err != nil {
		return zero, err
	}
	answer, err := ask(ctx, out)
	if err != nil {
		return zero, explain(err, nameOf[Req]())
	}
	v, err := Decode[Resp](answer, m.Codec)
	if err != nil {
		return zero, local(err, "answer of "+string(answer.From))
	}
	return v, nil
}

// outgoing returns m as bytes.
func (m *Message[T]) outgoing() (*fabric.Message, error) {
	out := &fabric.Message{}
	if m.Message != nil {
		*out = *m.Message
	}
	var err error
	if out.Type, out.Data, err = encode(m.Codec, true, m.Value); err != nil {
		return nil, local(err, nameOf[T]())
	}
	return out, nil
}

func nameOf[T any]() string {
	t, _ := base[T]()
	return GoName(t)
}

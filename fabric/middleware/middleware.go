package middleware

import (
	"context"

	"github.com/natsfabric/natsfabric/fabric"
)

// A Handler handles messages. It is what [fabric.Node.Handle] calls.
type Handler func(ctx context.Context, m *fabric.Message) ([]byte, error)

// A Sender sends m, or, as a request, sends it and returns the answer; of what is
// not a request that is nil. It does not change m.
type Sender func(ctx context.Context, m *fabric.Message, request bool) (*fabric.Message, error)

// An Inbound is middleware for messages that are received.
type Inbound interface{ Handler(next Handler) Handler }

// An Outbound is middleware for messages that are sent.
type Outbound interface{ Sender(next Sender) Sender }

// Handle returns h within the middleware, the first outermost.
func Handle(h Handler, ms ...Inbound) Handler {
	for i := len(ms) - 1; i >= 0; i-- {
		h = ms[i].Handler(h)
	}
	return h
}

// A Node is what messages are sent with in the end: a [*fabric.Node], or a [*Peer].
type Node interface {
	SendMsg(ctx context.Context, m *fabric.Message) error
	RequestMsg(ctx context.Context, m *fabric.Message) (*fabric.Message, error)
}

// A Peer sends as a [fabric.Node] does, through middleware. It is what package typed
// calls a Sender. The Node stays the caller's.
type Peer struct{ send Sender }

// Wrap returns n within the middleware, the first outermost.
func Wrap(n Node, ms ...Outbound) *Peer {
	send := Sender(func(ctx context.Context, m *fabric.Message, request bool) (answer *fabric.Message, err error) {
		if request {
			answer, err = n.RequestMsg(ctx, m)
		} else {
			err = n.SendMsg(ctx, m)
		}
		if err != nil {
			return nil, explain(err)
		}
		return answer, nil
	})
	for i := len(ms) - 1; i >= 0; i-- {
		send = ms[i].Sender(send)
	}
	return &Peer{send}
}

// SendMsg is [fabric.Node.SendMsg].
func (p *Peer) SendMsg(ctx context.Context, m *fabric.Message) error {
	_, err := p.send(ctx, m, false)
	return err
}

// RequestMsg is [fabric.Node.RequestMsg].
func (p *Peer) RequestMsg(ctx context.Context, m *fabric.Message) (*fabric.Message, error) {
	return p.send(ctx, m, true)
}

// Send is [fabric.Node.Send].
func (p *Peer) Send(ctx context.Context, to fabric.PID, data []byte) error {
	return p.SendMsg(ctx, &fabric.Message{To: to, Data: data})
}

// Broadcast is [fabric.Node.Broadcast].
func (p *Peer) Broadcast(ctx context.Context, data []byte) error {
	return p.Send(ctx, fabric.Everyone, data)
}

// Request is [fabric.Node.Request].
func (p *Peer) Request(ctx context.Context, to fabric.PID, data []byte) (*fabric.Message, error) {
	return p.RequestMsg(ctx, &fabric.Message{To: to, Data: data})
}

// A step is the rest of the way of one message, in or out.
type step[R any] func(ctx context.Context) (R, error)

// in is an Inbound of a function that does not care for the direction.
func in(next Handler, around func(context.Context, *fabric.Message, step[[]byte]) ([]byte, error)) Handler {
	return func(ctx context.Context, m *fabric.Message) ([]byte, error) {
		return around(ctx, m, func(ctx context.Context) ([]byte, error) { return next(ctx, m) })
	}
}

// out is an Outbound of one.
func out(next Sender, around func(context.Context, *fabric.Message, step[*fabric.Message]) (*fabric.Message, error)) Sender {
	return func(ctx context.Context, m *fabric.Message, request bool) (*fabric.Message, error) {
		return around(ctx, m, func(ctx context.Context) (*fabric.Message, error) { return next(ctx, m, request) })
	}
}

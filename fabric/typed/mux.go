package typed

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/natsfabric/natsfabric/fabric"
)

// Config says what a [Mux] does beside its handlers. The zero value is usable.
type Config struct {
	// Codecs are taken besides [Raw] and [JSON], if the ID of one is theirs instead.
	Codecs []Codec
	// Fallback gets the messages whose Type no handler is for: those of plain NATS
	// clients, of [fabric.Node.Send], and of other packages. Its result is as that
	// of a function given to [fabric.Node.Handle]. Default: they are refused.
	Fallback func(context.Context, *fabric.Message) ([]byte, error)
	// OnRefused is told of each message that was refused and why, in the goroutine
	// that handles it. The error wraps [ErrUnknownType], [ErrUnknownCodec], [ErrDecode]
	// or [ErrEncode].
	OnRefused func(*fabric.Message, error)
}

// Stats counts what a [Mux] did with the messages it was given. The counters are read
// one by one, not at one moment.
type Stats struct {
	// Handled were given to a handler, whatever it returned. Those of the Fallback
	// are not counted.
	Handled uint64
	// UnknownType, UnknownCodec and Undecodable were refused before.
	UnknownType, UnknownCodec, Undecodable uint64
	// Unencodable are requests that were handled, and whose answer could not be encoded.
	Unencodable uint64
}

// A Mux gives each message to the handler for its type. Its method Serve is what
// [fabric.Node.Handle] wants. One Mux may serve several nodes.
type Mux struct {
	cfg    Config
	codecs []Codec

	mu     sync.RWMutex // guards routes
	routes map[string]route

	handled, unknownType, unknownCodec, undecodable, unencodable atomic.Uint64
}

// A route handles the messages of one type in one codec.
type route struct {
	codec Codec
	serve func(context.Context, *fabric.Message, Codec) ([]byte, error)
}

// NewMux returns a Mux without handlers.
func NewMux(cfg Config) *Mux {
	x := &Mux{cfg: cfg, routes: make(map[string]route)}
	taken := make(map[byte]bool)
	for _, list := range [...][]Codec{cfg.Codecs, builtin} {
		for _, c := range list {
			if !taken[c.ID()] {
				taken[c.ID()] = true
				x.codecs = append(x.codecs, c)
			}
		}
	}
	return x
}

// Handle has f called with each message that is a T, or a *T. An error goes to a
// sender that awaits one. A request is answered with struct{}{}. Handle returns a
// [*TypeError] if T has a handler, or cannot be data.
func Handle[T any](x *Mux, f func(context.Context, *Message[T]) error) error {
	return HandleCall(x, func(ctx context.Context, m *Message[T]) (struct{}, error) { return struct{}{}, f(ctx, m) })
}

// HandleCall has f called with each message that is a Req, or a *Req, and answers it,
// if it is a request, with what f returns. The answer is encoded as the request was
// if that codec carries it, else with the default one; that the context of f has ended
// does not matter then. HandleCall returns a [*TypeError] as [Handle] does.
func HandleCall[Req, Resp any](x *Mux, f func(context.Context, *Message[Req]) (Resp, error)) error {
	t, _ := base[Req]()
	resp, _ := base[Resp]()
	serve := func(ctx context.Context, m *fabric.Message, c Codec) ([]byte, error) {
		v, err := decode[Req](c, m.Data)
		if err != nil {
			return nil, x.refused(m, err)
		}
		x.handled.Add(1)
		answer, err := f(ctx, &Message[Req]{Message: m, Value: v, Codec: c})
		if err != nil || !m.IsRequest() {
			return nil, err
		}
		out := &fabric.Message{}
		if out.Type, out.Data, err = encode(c, false, answer); err != nil {
			return nil, x.refused(m, err)
		}
		return nil, m.ReplyMsg(context.WithoutCancel(ctx), out) // as bytes are: until the node closes
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	routes := make(map[string]route)
	for _, c := range x.codecs {
		if name, ok := c.TypeName(t); ok {
			routes[label(c, name)] = route{c, serve}
		}
	}
	if len(routes) == 0 {
		return &TypeError{t, "no codec carries it"}
	}
	if _, _, ok := choose(resp, nil, false); !ok {
		return &TypeError{resp, "no codec carries it as an answer"}
	}
	for typ := range routes {
		if _, ok := x.routes[typ]; ok {
			return &TypeError{t, "it has a handler, or one of the same name has"}
		}
	}
	maps.Copy(x.routes, routes)
	return nil
}

// Serve handles one message.
func (x *Mux) Serve(ctx context.Context, m *fabric.Message) ([]byte, error) {
	x.mu.RLock()
	r, ok := x.routes[m.Type]
	x.mu.RUnlock()
	if ok {
		return r.serve(ctx, m, r.codec)
	}
	if x.cfg.Fallback != nil {
		return x.cfg.Fallback(ctx, m)
	}
	_, err := find(m.Type, x.codecs...)
	if err == nil {
		err = refuse(ErrUnknownType, "no handler for type %s", m.Type)
	}
	return nil, x.refused(m, err)
}

// refused counts and shows an error of ours, and returns it.
func (x *Mux) refused(m *fabric.Message, err error) error {
	switch {
	case errors.Is(err, ErrUnknownType):
		x.unknownType.Add(1)
	case errors.Is(err, ErrUnknownCodec):
		x.unknownCodec.Add(1)
	case errors.Is(err, ErrDecode):
		x.undecodable.Add(1)
	case errors.Is(err, ErrEncode):
		x.unencodable.Add(1)
	}
	if x.cfg.OnRefused != nil {
		x.cfg.OnRefused(m, err)
	}
	return err
}

// Stats returns the counts so far.
func (x *Mux) Stats() Stats {
	return Stats{
		Handled:      x.handled.Load(),
		UnknownType:  x.unknownType.Load(),
		UnknownCodec: x.unknownCodec.Load(),
		Undecodable:  x.undecodable.Load(),
		Unencodable:  x.unencodable.Load(),
	}
}

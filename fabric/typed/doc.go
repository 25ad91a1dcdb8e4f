// Package typed sends and handles Go values instead of bytes, over a [fabric.Node].
//
//	err := typed.Send(ctx, node, "billing", Order{ID: 7})
//	stock, err := typed.Call[Query, Stock](ctx, node, "stock", Query{Item: "apples"})
//
// and on the other side
//
//	mux := typed.NewMux(typed.Config{})
//	typed.Handle(mux, func(ctx context.Context, m *typed.Message[Order]) error { ... })
//	typed.HandleCall(mux, func(ctx context.Context, m *typed.Message[Query]) (Stock, error) { ... })
//	err := node.Handle(ctx, 4, mux.Serve)
//
// No type is registered with a codec. Both sides name the type in the program, and
// on the wire stands a hash of its name.
//
// # Names of types
//
// A type is known by its package and name ("example.com/shop.Order"); one without a
// name by what it is made of ("[]example.com/shop.Order"). T and *T are the same. Two
// programs that do not share the package, or that renamed a type, agree on a name by
// a method FabricType() string. It must return the same for every value.
//
// A hash has 64 bits. Two types of one program that collide are an error of
// [Handle]; between programs that are not hostile a collision does not happen, and
// one that is hostile may send any bytes anyway: a decoded value is input, to be
// checked as such.
//
// # Codecs
//
// [Raw] for strings and byte slices, [JSON] for everything else, unless [Message].Codec
// says otherwise. [Gob] is for peers that are trusted with the process: encoding/gob
// is not made for hostile input. A [Mux] takes it only if its Config says so. Protocol
// buffers are in the package typed/protobuf, because of what they depend on. An
// answer has the codec of its request where that can carry it.
//
// # Guarantees
//
// Delivery, order and what an error means are those of the mode the value is sent
// with; see package fabric. A handler is called only with a value that was sent as
// its type and decoded without an error; a pointer is never nil.
//
// # Failure handling
//
// Nothing that arrives makes this package panic. A message that no handler is for,
// in a codec that is not taken, or that cannot be decoded, is refused: the sender of a
// request, or of a message whose handling is acknowledged, gets an error that
// errors.Is finds to be [ErrUnknownType], [ErrUnknownCodec] or [ErrDecode], and a
// [*fabric.RemoteError] with a Code. Every refused message is counted in [Mux.Stats] and
// shown to Config.OnRefused.
//
// # Concurrency
//
// All functions, and a [Mux], are safe for concurrent use.
package typed

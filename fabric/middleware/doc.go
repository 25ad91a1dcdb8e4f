// Package middleware wraps what handles messages and what sends them.
//
//	err := node.Handle(ctx, 4, middleware.Handle(serve,
//		middleware.Recover{},
//		middleware.Dedup{},
//		middleware.Timeout{After: time.Second}))
//
//	peer := middleware.Wrap(node, middleware.Retry{}, middleware.Timeout{After: time.Second})
//	err := peer.SendMsg(ctx, m)
//	v, err := typed.Call[Query, Stock](ctx, peer, "stock", q)
//
// Each is a struct that says what it does; its zero value is usable. The first of a
// list is the outermost: above, the time limit holds for each try, and the panics of
// all the others are recovered. A usual order is Recover, tracing, Slow, Dedup,
// Throttle, Retry, Timeout.
//
// One of your own is a type with the method Handler ([Inbound]), Sender ([Outbound])
// or both; the package otelfabric has one.
//
// # State
//
// What [Dedup] and [Throttle] remember belongs to what [Handle] or [Wrap] returned. Wrap
// once and use the result everywhere, or every copy counts for itself.
//
// # Failure handling
//
// A handler's error travels to a sender that awaits it, as a [*fabric.RemoteError]. The
// errors of this package have a Code, by which a [Peer] on the other side finds them
// again: errors.Is(err, [ErrThrottled]) holds there, too.
//
// # Concurrency
//
// What [Handle] and [Wrap] return is safe for concurrent use.
package middleware

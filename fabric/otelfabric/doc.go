// Package otelfabric traces messages with OpenTelemetry and shows a node's counters as
// metrics. It is apart because of what it depends on.
//
//	tracing := otelfabric.Trace{}
//	peer := middleware.Wrap(node, tracing)
//	err := node.Handle(ctx, 4, middleware.Handle(serve, tracing))
//	reg, err := otelfabric.Observe(node, nil)
//
// # Traces
//
// Each message that goes through [Trace] has a span: "fabric send", "fabric broadcast",
// "fabric publish" or "fabric request" where it is sent, until the call returns, and "fabric handle"
// where it is handled, which is a child of the former. What else the handler sends is a
// child of that, if it uses the context that it was called with.
//
// The context of a trace travels in the header "traceparent", and "tracestate" if there
// is one: in lower case, as W3C Trace Context has it, and found in any case. A message
// has it only if the trace is sampled, because a header doubles what a small message
// costs: of a trace that is not sampled, the receiver's side knows nothing, and decides
// by itself whether to begin one. A NATS server whose account has msg_trace set traces
// the way of a message with a sampled traceparent, too.
//
// # Metrics
//
// One for each field of [fabric.Stats]: fabric.node.sent and so on, read when the reader
// collects.
package otelfabric

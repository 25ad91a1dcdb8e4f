// Package fabric makes processes that share a NATS server members of one fabric:
// each is a [Node] with a [PID], sees the others, and sends them messages.
//
//	node, err := fabric.Join(ctx, fabric.Config{Cluster: "shop", PID: "web-1"})
//	if err != nil {
//		return err
//	}
//	defer node.Leave(context.WithoutCancel(ctx))
//	err = node.Send(ctx, "web-2", data)
//
// Elections and balance groups stand on the same node: see the packages election
// and balance.
//
// # Guarantees
//
// A PID is held by one process at a time. Who held it before is known to be over
// before the next holder has it, whatever the network does, provided that the
// clocks of the machines run at the same rate within 1 %.
//
// Nobody lists peers: everyone sees the same numbered [View], in the same order,
// later or sooner. A reader of [Node.Changes] never misses a final state.
//
// A message arrives at most once, in order per sender, and From is who sent it as
// far as the server's permissions enforce that. It may be lost with a connection or
// in a full inbox; [Node.Flush], Config.OnUndeliverable and [Stats] tell what
// became of it, as far as anybody knows. A request that was answered was handled.
// Other modes promise more ([Mode]): Reliable arrives once, as long as both processes
// live, and Durable at least once, so that its receivers must expect repetitions.
//
// # Failure handling
//
//	        Join                    not renewed in time
//	(new) -------> member [Rejoined] -----------------> lost [Lost]
//	                  ^   |                              |
//	                  |   | Leave                        | renewed late, or the PID
//	                  |   v                              | taken again: same or
//	                  |  left (ErrClosed)                | new incarnation
//	                  +----------------------------------+
//
// A node that is cut off goes on trying. Its terms and shares end before anybody
// else can have them. When it is back it is a member again by itself, and [Node.Events]
// says so. It ends for good, with [Node.Context], when another process took its PID
// meanwhile or its connection was closed.
//
// # Timing
//
// A crashed process is seen to have failed 1.01 leases after it was last heard of; a
// lease is Config.Lease, renewed each three eighths of it. One that leaves is seen at once.
// Joins are gathered, so that a thousand make a few views.
//
// # Concurrency
//
// A [Node] is safe for concurrent use. It runs a fixed number of goroutines, which
// Leave waits for. Callbacks are called one at a time.
package fabric

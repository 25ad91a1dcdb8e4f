// Package fence keeps the effects of a leader that was deposed away from a resource
// that NATS does not guard: a directory, a device, an API without conditions. It is
// for the process that owns the resource; the leaders give their token along.
//
//	gate, err := fence.Open("/var/lib/printer/fence")
//	...
//	err = gate.Do(ctx, token, func() error { return print(job) })
//
// # Guarantees
//
// Once an effect of a token has been admitted, none of a lower one is, ever: also not
// after a crash, if the gate has a file. Nor does one run beside it: an effect of a
// higher token waits until those of lower ones that run have returned. Effects of one
// token run at the same time.
//
// The gate orders what goes through it. It knows nothing of who leads, and admits the
// effects of a deposed leader until the first of the next arrives: a new leader that
// must rely on that goes through the gate before it reads.
//
// # Concurrency
//
// A [Gate] is safe for concurrent use. One process at a time opens a file; on Unix and
// Windows a second one is refused.
package fence

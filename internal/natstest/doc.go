// Package natstest runs tests against real NATS servers.
//
// [Bubble] runs a test in fake time, with a server of its own: a ten-second expiry
// costs milliseconds and a leaked goroutine fails the test. [Start] does the same in
// real time over TCP, [StartCluster] and [StartProcesses] start several servers that
// form one JetStream cluster. A [Link] is a way to a server that can be cut.
//
// Only tests import this package.
//
// # Failure handling
//
// What the package itself cannot do fails the test at once, with t.Fatal. Therefore
// its functions are called from the goroutine of the test. When a test fails, the
// last lines of the server's log are added to the test's.
//
// # Concurrency
//
// [Server], [Link] and [Cluster] are safe for concurrent use, but for the rule about
// t.Fatal above; Cut, Heal and their like never fail a test.
//
// # Timing
//
// In a bubble, time stands still while any goroutine can run and jumps to the next
// timer when none can. It never advances while a goroutine waits for a mutex, so
// nothing may block with a mutex held. nats.go writes and shakes hands under its own
// lock: [Link] takes every byte without blocking, refuses a connection at once when
// cut, and closes one that is cut in the middle of the handshake.
//
// A test in a bubble must not run in parallel with other tests of its binary that
// use NATS: nats.go keeps timers in a pool, and a timer of one bubble is fatal in
// another. [Bubble] empties the pool before and after.
package natstest

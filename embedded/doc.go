// Package embedded runs a NATS server with JetStream inside the process.
//
//	srv, err := embedded.Start(ctx, embedded.Config{StoreDir: "/var/lib/shop"})
//	if err != nil {
//		return err
//	}
//	defer srv.Shutdown(ctx)
//	nc, err := srv.Connect()
//
// It is a convenience: whoever connects cannot tell an embedded server from any
// other. Other processes connect to [Server.ClientURL]. What [Config] does not cover,
// a cluster for example, is set through Config.Options.
//
// # Guarantees
//
// Nobody gets in who was not let in: every listener is on the loopback interface
// unless an address says otherwise, and one beyond loopback without authentication
// is refused with an error wrapping [ErrUnprotected].
//
// What the server acknowledged is on the disk: it syncs every write.
//
// One store has one server: the directory is locked, and a second server of this
// package gets an error wrapping [ErrStoreInUse]. A nats-server started in another
// way does not look at the lock. Where the system has no file locks (other than
// Windows and the BSD and Linux families) there is no lock.
//
// The process keeps its signal handlers.
//
// # Failure handling
//
// [Start] returns a running server or an error, and then leaves nothing behind. It
// fails as soon as the server does, for a port in use for example. After that,
// failures are the server's own affair: it logs them.
//
// A connection from [Server.Connect] ends with the server. Its attempts to reconnect
// go to the same server and are in vain: close it, and connect to the new one.
//
// A server that is ever to be part of a cluster is configured as a cluster from its
// first day: going from standalone to clustered deletes its streams.
//
// # Concurrency
//
// A [Server] is safe for concurrent use. A connection in the process costs more
// goroutines than one over TCP and carries about two thirds of its traffic: above a
// hundred of them, listen and connect to ClientURL instead.
//
// # Timing
//
// A server with an empty store is up in milliseconds; with a full one it reads its
// streams first. The context given to [Start] bounds the wait, not the server's life.
package embedded

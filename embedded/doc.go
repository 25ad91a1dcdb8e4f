// Package embedded runs a NATS server with JetStream inside the process.
//
//	srv, err := embedded.Start(ctx, embedded.Config{StoreDir: "/var/lib/shop"})
//	if err != nil {
//		return err
//	}
//	defer srv.Shutdown(ctx)
//	nc, err := srv.Connect()
//
// Whoever connects cannot tell an embedded server from any other. Other processes
// connect to [Server.ClientURL].
//
// A server is one of three kinds. By itself, it is as available as its process. Three
// or five with the same [Config.Routes] are a cluster, which serves as long as a
// majority of them is up. A leaf node, [Config.Hub], stores nothing and takes its
// clients to such servers: that is how every other process brings its own.
//
// # Guarantees
//
// Nobody gets in who was not let in: a server asks for random credentials, which it
// keeps in a file that only this user can read, and listens on the loopback
// interface unless an address says otherwise. A listener beyond loopback without
// authentication or without TLS is refused with an error wrapping [ErrUnprotected].
// Config.Insecure, and nothing else, takes both back. Connections inside the process
// are not asked. No other port is opened, and what clients may take is bounded:
// connections, subscriptions, what waits for a slow one, memory and store.
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
// [Server.Restart] keeps the address and the connections' way to it: clients inside
// the process and outside reconnect by themselves. After Shutdown, a connection from
// [Server.Connect] tries in vain: close it.
//
// A member of a cluster that is shut down or restarted first hands over what it
// leads: writes to the cluster go on after some ten milliseconds. One that is killed
// leaves a gap of 4 to 8 seconds, the election that nats-server takes.
//
// A member that is gone for good is taken off with [RemovePeer], and its name
// is never used again. What two of three members have lost the third cannot serve:
// it answers reads, and refuses writes, until one of them is back.
//
// Going from one server to a cluster with the same store would delete its streams,
// because the cluster does not know them. Such a store is refused with an error
// wrapping [ErrStoreMode], and so is the way back. The streams are moved with a
// backup.
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
//
// A cluster forms for the first time when all its members are there, within 1 to 10
// seconds; [Server.AwaitCluster] waits for that, and says for whom. A member stops
// within 1 to 3 seconds.
package embedded

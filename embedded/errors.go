package embedded

import "errors"

// Errors of this package, for errors.Is.
var (
	// ErrConfig: the Config, or what its Options made of it, is not valid.
	ErrConfig = errors.New("embedded: invalid configuration")
	// ErrUnprotected: an address beyond loopback without authentication and TLS.
	ErrUnprotected = errors.New("embedded: address beyond loopback without credentials and TLS")
	// ErrStore: the store directory cannot be used: not a directory, not writable.
	ErrStore = errors.New("embedded: store directory not usable")
	// ErrStoreInUse: another server has the store directory.
	ErrStoreInUse = errors.New("embedded: store directory in use by another server")
	// ErrStoreMode: the store was made by a server by itself, and this one is to be
	// a member of a cluster, or the other way round. Starting would delete its
	// streams, or what is made there: move them with a backup.
	ErrStoreMode = errors.New("embedded: store of another kind of server")
	// ErrAddrInUse: something else listens on the address.
	ErrAddrInUse = errors.New("embedded: address in use")
	// ErrStart: the server did not start, or not in time.
	ErrStart = errors.New("embedded: server did not start")
	// ErrNotFormed: the cluster, or the way to the hub, was not there in time.
	ErrNotFormed = errors.New("embedded: cluster not formed")
	// ErrClosed: the server is shut down.
	ErrClosed = errors.New("embedded: server is shut down")
)

package embedded

import "errors"

// Errors of this package, for errors.Is.
var (
	// ErrConfig: the Config, or what its Options made of it, is not valid.
	ErrConfig = errors.New("embedded: invalid configuration")
	// ErrUnprotected: an address beyond loopback, and no authentication.
	ErrUnprotected = errors.New("embedded: address beyond loopback without authentication")
	// ErrStore: the store directory cannot be used: not a directory, not writable.
	ErrStore = errors.New("embedded: store directory not usable")
	// ErrStoreInUse: another server has the store directory.
	ErrStoreInUse = errors.New("embedded: store directory in use by another server")
	// ErrAddrInUse: something else listens on the address.
	ErrAddrInUse = errors.New("embedded: address in use")
	// ErrStart: the server did not start, or not in time.
	ErrStart = errors.New("embedded: server did not start")
	// ErrClosed: the server is shut down.
	ErrClosed = errors.New("embedded: server is shut down")
)

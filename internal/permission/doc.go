// Package permission writes the allow-list of a process, which fabric.Config's
// Permissions puts together, as a NATS server wants to read it: users of a
// configuration file, a JWT's permissions, and the accounts of each [Layout].
//
// What each layout protects, and what it does not, is in docs/SECURITY.md.
package permission

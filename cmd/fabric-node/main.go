// Command fabric-node joins a fabric from the shell: as a member, as a sender, as
// the guard of a command that may run on one machine at a time, or as the NATS
// server itself. `fabric-node demo` shows all of it in one process.
//
// Data goes to stdout; logs, progress and the text of errors go to stderr. The
// exit codes and the output formats are in output.go, the flags and their
// environment twins in flags.go.
package main

import (
	"context"
	"os"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

//go:build linux

// Command leader is a program with a fabric in it and nothing else: it joins the server
// at a URL, leads an election, says so, and goes on until it is killed or its input
// ends. The benchmarks of package peers kill it.
//
//	leader URL ELECTION PID LEASE
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

func main() {
	if err := lead(context.Background(), os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin) // until the parent closes it, or is gone
}

func lead(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("leader URL ELECTION PID LEASE: %d arguments", len(args))
	}
	lease, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	node, err := fabric.Join(ctx, fabric.Config{
		Cluster: "peers", URL: args[0], PID: fabric.PID(args[2]), Lease: lease, Inbox: fabric.Inbox{Off: true},
	})
	if err != nil {
		return err
	}
	e, err := election.New(node, election.Config{Name: args[1]})
	if err != nil {
		return err
	}
	_, err = e.Campaign(ctx)
	return err
}

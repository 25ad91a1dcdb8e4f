package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

func newLeader(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "leader NAME",
		Short: "Print who leads an election",
		Long:  `Print the PID of the process that leads election NAME. Exit code 4: nobody does.`,
		Example: `  fabric-node leader -k shop billing
  fabric-node leader -k shop billing -o json | jq .token`,
		Args: exactly(1, 1, "NAME"),
		RunE: a.oneShot(func(ctx context.Context, args []string) error {
			return a.observe(ctx, func(node *fabric.Node) error { return a.leader(ctx, node, args[0]) })
		}),
	}
}

type leaderObject struct {
	Name  string     `json:"name"`
	PID   fabric.PID `json:"pid"`
	Term  uint64     `json:"term"`
	Token uint64     `json:"token"`
	Since time.Time  `json:"since"`
}

func (a *app) leader(ctx context.Context, node *fabric.Node, name string) error {
	ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
	defer cancel()
	e, err := election.New(node, election.Config{Name: name, Logger: a.log})
	if err != nil {
		return err
	}
	l, err := e.Leader(ctx)
	if errors.Is(err, election.ErrNoLeader) {
		return &exitError{exitNotFound, fmt.Errorf("nobody leads %s in %s/%s", name, a.opts.cluster, a.opts.env),
			fmt.Sprintf("to lead it: fabric-node lead -k %s -e %s %s -- COMMAND", a.opts.cluster, a.opts.env, name)}
	}
	if err != nil {
		return err
	}
	if !a.table() {
		return a.object(leaderObject{name, l.PID, l.Term, l.Token, l.Since.UTC()})
	}
	_, err = fmt.Fprintln(a.stdout, l.PID)
	return err
}

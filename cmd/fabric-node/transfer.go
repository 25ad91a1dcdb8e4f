package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

func newTransfer(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "transfer NAME [PID]",
		Short: "Ask the leader to hand over to another",
		Long: `Ask the leader of election NAME to hand over to member PID, or to the one that
comes first, and print who leads then. The leader stops its work before. Exit code 4:
nobody leads, or PID does not stand for election; 1: PID did not take over, and
another did.`,
		Example: `  fabric-node transfer -k shop billing web-2
  fabric-node transfer -k shop billing        # to the highest priority`,
		Args: exactly(1, 2, "NAME [PID]"),
		RunE: a.oneShot(func(ctx context.Context, args []string) error {
			return a.observe(ctx, func(node *fabric.Node) error {
				to := fabric.PID("")
				if len(args) > 1 {
					to = fabric.PID(args[1])
				}
				return a.transfer(ctx, node, args[0], to)
			})
		}),
	}
}

func (a *app) transfer(ctx context.Context, node *fabric.Node, name string, to fabric.PID) error {
	ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
	defer cancel()
	e, err := election.New(node, election.Config{Name: name, Logger: a.log})
	if err != nil {
		return err
	}
	l, err := e.AskTransfer(ctx, to)
	switch {
	case errors.Is(err, election.ErrNoLeader):
		return a.nobodyLeads(name)
	case errors.Is(err, election.ErrNoCandidate):
		return &exitError{exitNotFound, err, "who is to lead must wait for it: fabric-node lead or run --elect"}
	case err != nil:
		return err
	case !a.table():
		return a.object(newLeaderObject(name, l))
	}
	_, err = fmt.Fprintln(a.stdout, l.PID)
	return err
}

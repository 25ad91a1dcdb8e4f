package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

func newResign(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "resign NAME",
		Short: "Ask the leader of an election to resign",
		Long: `Ask the leader of election NAME to resign, and print which process it was. It stops
its work before, and others may lead; one that goes on campaigning stands back for a
second. Exit code 4: nobody leads.`,
		Example: `  fabric-node resign -k shop billing`,
		Args:    exactly(1, 1, "NAME"),
		RunE: a.oneShot(func(ctx context.Context, args []string) error {
			return a.observe(ctx, func(node *fabric.Node) error { return a.resign(ctx, node, args[0]) })
		}),
	}
}

func (a *app) resign(ctx context.Context, node *fabric.Node, name string) error {
	ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
	defer cancel()
	e, err := election.New(node, election.Config{Name: name, Logger: a.log})
	if err != nil {
		return err
	}
	l, err := e.AskResign(ctx)
	switch {
	case errors.Is(err, election.ErrNoLeader):
		return a.nobodyLeads(name)
	case err != nil:
		return err
	case !a.table():
		return a.object(newLeaderObject(name, l))
	}
	_, err = fmt.Fprintln(a.stdout, l.PID)
	return err
}

package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/fabric"
)

func newEvict(a *app) *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use:     "evict PID",
		Aliases: []string{"drain"},
		Short:   "Take all indices of a balance group from a member",
		Long: `Take all indices and partitions of balance group -p from member PID, whether it is
well or not, and return when it has none any more. It stays in the group with
nothing to do, until it is started anew or --undo.

Where the group is strict (balance -- COMMAND), others get what it had only when it
has stopped, or its lease has run out.`,
		Example: `  fabric-node evict -k shop web-1
  fabric-node drain -k shop web-1 && deploy web-1      # the same
  fabric-node evict -k shop web-1 --undo`,
		Args: exactly(1, 1, "PID"),
	}
	cmd.RunE = a.oneShot(func(ctx context.Context, args []string) error {
		return a.observe(ctx, func(node *fabric.Node) error { return a.evict(ctx, node, fabric.PID(args[0]), undo) })
	})
	cmd.Flags().BoolVar(&undo, "undo", false, "let it have indices again")
	return cmd
}

// evict waits for as long as something is given up, and --timeout beyond that.
func (a *app) evict(ctx context.Context, node *fabric.Node, pid fabric.PID, undo bool) error {
	// A strict group may have to wait for a lease.
	ctx, cancel := context.WithTimeout(ctx, a.opts.timeout+2*a.opts.ttl)
	defer cancel()
	var err error
	if undo {
		err = balance.Restore(ctx, node, a.opts.group, pid)
	} else {
		err = balance.Evict(ctx, node, a.opts.group, pid, func(left int) { a.note("%s has %d left", pid, left) })
	}
	if errors.Is(err, balance.ErrNoMember) {
		return &exitError{code: exitNotFound, err: err, hint: "see who is in it, or name another -p: fabric-node balance --watch -p " + a.opts.group + " " + a.where()}
	}
	return err
}

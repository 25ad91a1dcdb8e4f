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
	var watch bool
	cmd := &cobra.Command{
		Use:   "leader NAME",
		Short: "Print who leads an election",
		Long: `Print the PID of the process that leads election NAME. Exit code 4: nobody does.

With --watch print who leads, or that nobody does, now and whenever that changes,
until INT or TERM; also when the leader is not heard, which may come before its
lease runs out.`,
		Example: `  fabric-node leader -k shop billing
  fabric-node leader -k shop billing -o json | jq .token
  fabric-node leader -k shop billing --watch`,
		Args: exactly(1, 1, "NAME"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		run, f := a.oneShot, a.leader
		if watch {
			run, f = a.untilSignal, a.watchLeader
		}
		return run(func(ctx context.Context, args []string) error {
			return a.observe(ctx, func(node *fabric.Node) error { return f(ctx, node, args[0]) })
		})(cmd, args)
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "go on, and print every change")
	return cmd
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
		return a.nobodyLeads(name)
	}
	if err != nil {
		return err
	}
	if !a.table() {
		return a.object(newLeaderObject(name, l))
	}
	_, err = fmt.Fprintln(a.stdout, l.PID)
	return err
}

func newLeaderObject(name string, l election.Leader) leaderObject {
	return leaderObject{name, l.PID, l.Term, l.Token, l.Since.UTC()}
}

func (a *app) nobodyLeads(name string) error {
	return &exitError{exitNotFound, fmt.Errorf("nobody leads %s in %s/%s", name, a.opts.cluster, a.opts.env),
		fmt.Sprintf("to lead it: fabric-node lead -k %s -e %s %s -- COMMAND", a.opts.cluster, a.opts.env, name)}
}

// watchLeader reports who leads until ctx ends.
func (a *app) watchLeader(ctx context.Context, node *fabric.Node, name string) error {
	e, err := election.New(node, election.Config{Name: name, Logger: a.log})
	if err != nil {
		return err
	}
	out := a.events()
	for l, err := range e.Leaders(ctx) {
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = out.emit(newLeaderEvent(name, l))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

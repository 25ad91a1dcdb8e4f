package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/fabric"
)

func newRepair(a *app) *cobra.Command {
	var replicas int
	var dry bool
	var mailboxes []string
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Give the fabric's bucket the settings it needs, and more copies",
		Long: `Compare the settings of the fabric's bucket with what a fabric needs, and set those
that differ. With --replicas 3, have three servers of the cluster keep the bucket. With
--mailbox, make the mailboxes of processes that may not make their own. Members may be
running. The user needs the permissions of an admin.`,
		Example: `  fabric-node repair -k shop --dry-run
  fabric-node repair -k shop --replicas 3    # the server became a cluster
  fabric-node repair -k shop --mailbox web-1 # it is a member, and no admin`,
		Args: exactly(0, 0, "[--replicas N] [--mailbox PID]... [--dry-run]"),
		RunE: a.oneShot(func(ctx context.Context, _ []string) error { return a.repair(ctx, replicas, mailboxes, dry) }),
	}
	cmd.Flags().IntVar(&replicas, "replicas", 0, "have `N` servers keep the bucket (default as it is)")
	cmd.Flags().StringSliceVar(&mailboxes, "mailbox", nil, "make the mailbox of `PID`, if it has none (repeatable)")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would change, and change nothing")
	return cmd
}

type repairObject struct {
	DryRun  bool         `json:"dry_run"`
	Changes []repairItem `json:"changes"`

	Mailboxes []string `json:"mailboxes,omitempty"` // that are there now
}

type repairItem struct {
	Field string `json:"field"`
	Got   string `json:"got"`
	Want  string `json:"want"`
}

func (a *app) repair(ctx context.Context, replicas int, mailboxes []string, dry bool) error {
	ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
	defer cancel()
	ep, err := a.endpoint()
	if err != nil {
		return err
	}
	cfg := a.config(ep, true)
	reach := cfg
	if cfg.Control != nil {
		reach.NATS = cfg.Control
	}
	if err := a.probe(ctx, reach); err != nil { // at once, and not when --timeout is over
		return err
	}
	changes, err := fabric.Repair(ctx, cfg, replicas, dry)
	if err != nil && a.hint(err) == "" {
		return (&exitError{code: exitCode(err), err: err}).see("fabric-node doctor " + a.where())
	}
	if err != nil {
		return err
	}
	if dry {
		mailboxes = nil
	}
	if len(mailboxes) > 0 {
		var pids []fabric.PID
		for _, pid := range mailboxes {
			pids = append(pids, fabric.PID(pid))
		}
		if err := fabric.CreateMailboxes(ctx, cfg, pids...); err != nil {
			return err
		}
	}
	if a.table() {
		return a.repairText(changes, mailboxes, dry)
	}
	o := repairObject{DryRun: dry, Changes: []repairItem{}, Mailboxes: mailboxes}
	for _, c := range changes {
		o.Changes = append(o.Changes, repairItem{c.Field, fmt.Sprint(c.Got), fmt.Sprint(c.Want)})
	}
	return a.object(o)
}

func (a *app) repairText(changes []fabric.BucketChange, mailboxes []string, dry bool) error {
	var b strings.Builder
	verb := "set "
	if dry {
		verb = "would set "
	}
	for _, c := range changes {
		b.WriteString(verb + c.String() + "\n")
	}
	if len(changes) == 0 {
		b.WriteString("the bucket is as it should be\n")
	}
	for _, pid := range mailboxes {
		b.WriteString(pid + " has a mailbox\n")
	}
	_, err := fmt.Fprint(a.stdout, b.String())
	return err
}

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/fabric"
)

func newRepair(a *app) *cobra.Command {
	var replicas int
	var dry bool
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Give the fabric's bucket the settings it needs, and more copies",
		Long: `Compare the settings of the fabric's bucket with what a fabric needs, and set those
that differ. With --replicas 3, have three servers of the cluster keep the bucket.
Members may be running. The user needs the permission to update the stream.`,
		Example: `  fabric-node repair -k shop --dry-run
  fabric-node repair -k shop --replicas 3    # the server became a cluster`,
		Args: exactly(0, 0, "[--replicas N] [--dry-run]"),
		RunE: a.oneShot(func(ctx context.Context, _ []string) error { return a.repair(ctx, replicas, dry) }),
	}
	cmd.Flags().IntVar(&replicas, "replicas", 0, "have `N` servers keep the bucket (default as it is)")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would change, and change nothing")
	return cmd
}

type repairObject struct {
	DryRun  bool         `json:"dry_run"`
	Changes []repairItem `json:"changes"`
}

type repairItem struct {
	Field string `json:"field"`
	Got   string `json:"got"`
	Want  string `json:"want"`
}

func (a *app) repair(ctx context.Context, replicas int, dry bool) error {
	ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
	defer cancel()
	ep, err := a.endpoint()
	if err != nil {
		return err
	}
	changes, err := fabric.Repair(ctx, a.config(ep, true), replicas, dry)
	if err != nil {
		return err
	}
	if a.table() {
		verb := "set "
		switch {
		case len(changes) == 0:
			_, err := fmt.Fprintln(a.stdout, "the bucket is as it should be")
			return err
		case dry:
			verb = "would set "
		}
		for _, c := range changes {
			if _, err := fmt.Fprintln(a.stdout, verb+c.String()); err != nil {
				return err
			}
		}
		return nil
	}
	o := repairObject{DryRun: dry, Changes: []repairItem{}}
	for _, c := range changes {
		o.Changes = append(o.Changes, repairItem{c.Field, fmt.Sprint(c.Got), fmt.Sprint(c.Want)})
	}
	return a.object(o)
}

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

func newElections(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "elections",
		Short: "List the elections and who leads them",
		Long: `List every election that was ever held in the fabric, who leads it, and for how long.
It creates nothing.`,
		Example: `  fabric-node elections -k shop
  fabric-node elections -k shop -o json | jq -r '.elections[] | select(.pid == null).name'`,
		Args: exactly(0, 0, ""),
		RunE: a.oneShot(func(ctx context.Context, _ []string) error {
			return a.observe(ctx, func(node *fabric.Node) error {
				ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
				defer cancel()
				all, err := election.List(ctx, node)
				if err != nil {
					return err
				}
				return a.printElections(all, time.Now())
			})
		}),
	}
}

type electionsObject struct {
	Cluster   string           `json:"cluster"`
	Env       string           `json:"env"`
	Elections []electionObject `json:"elections"`
}

// An electionObject has no pid, token and since while nobody leads.
type electionObject struct {
	Name      string      `json:"name"`
	Term      uint64      `json:"term"`
	PID       *fabric.PID `json:"pid,omitempty"`
	Token     uint64      `json:"token,omitempty"`
	Since     *time.Time  `json:"since,omitempty"`
	Priority  int         `json:"priority,omitempty"`
	Successor fabric.PID  `json:"successor,omitempty"`
	Foreign   bool        `json:"foreign,omitempty"`
}

func (a *app) printElections(all []election.Listed, now time.Time) error {
	if a.table() {
		return a.electionsTable(all, now)
	}
	o := electionsObject{a.opts.cluster, a.opts.env, []electionObject{}}
	for _, e := range all {
		x := electionObject{Name: e.Name, Term: e.Term, Successor: e.Leader.Successor, Foreign: e.Foreign}
		if l := e.Leader; l.PID != "" {
			x.PID, x.Token, x.Since, x.Priority = &l.PID, l.Token, new(l.Since.UTC()), l.Priority
		}
		o.Elections = append(o.Elections, x)
	}
	return a.object(o)
}

func (a *app) electionsTable(all []election.Listed, now time.Time) error {
	if len(all) == 0 {
		a.note("no elections in %s/%s", a.opts.cluster, a.opts.env)
		return nil
	}
	t := newTable()
	t.AppendHeader(table.Row{"NAME", "LEADER", "FOR", "TERM", "TOKEN"})
	t.SetColumnConfigs([]table.ColumnConfig{{Name: "FOR", Align: text.AlignRight, AlignHeader: text.AlignRight}})
	for _, e := range all {
		switch l := e.Leader; {
		case e.Foreign:
			t.AppendRow(table.Row{e.Name, "(foreign record)"})
		case l.PID == "":
			t.AppendRow(table.Row{e.Name, "-", "", e.Term})
		default:
			t.AppendRow(table.Row{e.Name, l.PID, age(now.Sub(l.Since)), l.Term, l.Token})
		}
	}
	if _, err := fmt.Fprintln(a.stdout, t.Render()); err != nil {
		return err
	}
	a.note("%s in %s/%s", plural(len(all), "election"), a.opts.cluster, a.opts.env)
	return nil
}

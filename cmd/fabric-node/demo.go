package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/embedded"
)

const (
	// demoLease makes the failover quick to watch, and leaves a busy machine time to renew.
	demoLease = 2 * time.Second
	// demoTimeout bounds the demo; it takes a third of it.
	demoTimeout = 15 * time.Second
)

func newDemo(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show all of it in this process: three nodes, an election, indices, a failover",
		Long: `Start a server of its own and three nodes in this process; let them meet, talk,
elect a leader and divide seven indices; then cut the leader off and watch the
others take over. Each line is checked before it is printed, and the exit code is
0 only if all of them held. Nothing is left behind.`,
		Example: `  fabric-node demo
  fabric-node demo -o json | jq .failover_ms`,
		Args: exactly(0, 0, ""),
		RunE: a.untilSignal(func(ctx context.Context, _ []string) error {
			err := a.demo(ctx)
			if err != nil && ctx.Err() != nil {
				return context.Cause(ctx) // stopped before its end, but in order
			}
			return err
		}),
	}
}

// A demo tells the story and counts the claims that it checked.
type demo struct {
	app    *app
	nodes  []*demoNode
	term   *election.Term // node1's
	result demoObject
}

type demoObject struct {
	OK         bool        `json:"ok"`
	Claims     int         `json:"claims"`
	Nodes      []demoShare `json:"nodes"`
	Leaders    []demoTerm  `json:"leaders"`
	FailoverMS float64     `json:"failover_ms"`
	ElapsedMS  float64     `json:"elapsed_ms"`
}

type demoShare struct {
	PID     string `json:"pid"`
	First   int    `json:"first"`
	Workers int    `json:"workers"`
}

type demoTerm struct {
	PID   string `json:"pid"`
	Term  uint64 `json:"term"`
	Token uint64 `json:"token"`
}

func (a *app) demo(ctx context.Context) (err error) {
	start := time.Now()
	if o := a.opts; !o.verbose { // the warnings of the node that is cut off are part of the story
		o.quiet = true
		a.log = a.newLogger(o)
	}
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{Logger: a.log})
	if err != nil {
		return fmt.Errorf("start the demo's server: %w", err)
	}
	d := &demo{app: a}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.opts.timeout)
		defer cancel()
		d.leave(ctx)
		err = errors.Join(err, srv.Shutdown(ctx))
		if err == nil {
			err = d.finish(time.Since(start))
		}
	}()
	d.say("server", "nats://%s, in this process", srv.Addr())
	for _, step := range []func(context.Context) error{
		func(ctx context.Context) error { return d.join(ctx, srv) },
		d.message, d.broadcast, d.request, d.elect, d.balance, d.failover,
	} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	return nil
}

func (d *demo) finish(took time.Duration) error {
	d.result.OK = true
	d.result.ElapsedMS = milliseconds(took)
	if !d.app.table() {
		return d.app.object(d.result)
	}
	_, err := fmt.Fprintf(d.app.stdout, "\nok: %d claims checked in %.1f s\n", d.result.Claims, took.Seconds())
	return err
}

// claim checks one claim of the story.
func (d *demo) claim(holds bool, format string, args ...any) error {
	if !holds {
		return fmt.Errorf("this did not hold: "+format, args...)
	}
	d.result.Claims++
	return nil
}

// say prints a line of the story, whose claims have been checked.
func (d *demo) say(what, format string, args ...any) {
	if d.app.table() {
		fmt.Fprintf(d.app.stdout, "%-10s %s\n", what, fmt.Sprintf(format, args...))
	}
}

// showIndices prints the table of libcluster's README.
func (d *demo) showIndices(shares []demoShare) {
	if !d.app.table() {
		return
	}
	t := newTable()
	t.AppendHeader(table.Row{"INDEX", "NODE", "WORKER"})
	t.SetColumnConfigs([]table.ColumnConfig{
		{Name: "INDEX", Align: text.AlignRight}, {Name: "WORKER", Align: text.AlignRight, AlignHeader: text.AlignRight},
	})
	for _, s := range shares {
		for w := range s.Workers {
			t.AppendRow(table.Row{s.First + w, s.PID, w})
		}
	}
	indent := strings.Repeat(" ", 11)
	fmt.Fprintln(d.app.stdout, indent+strings.ReplaceAll(t.Render(), "\n", "\n"+indent))
}

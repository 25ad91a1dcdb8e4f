package main

import (
	"context"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/fabric"
)

func newWatch(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "watch",
		Short: "Follow who joins, leaves, fails and changes",
		Long: `Print the present members as joins, then every change, until INT or TERM. A
member that said goodbye has left; one that did not has failed, by its lease or
before that by evidence: its connection was closed or dropped, or it is unreachable.
There is a suspect first; an alive follows if it was nothing.`,
		Example: `  fabric-node watch -k shop
  fabric-node watch -k shop -o ndjson | jq -r 'select(.type == "fail").pid'`,
		Args: exactly(0, 0, ""),
		RunE: a.untilSignal(func(ctx context.Context, _ []string) error {
			return a.observe(ctx, func(node *fabric.Node) error {
				err := a.watch(ctx, node)
				if ctx.Err() != nil {
					return nil
				}
				return err
			})
		}),
	}
}

func (a *app) watch(ctx context.Context, node *fabric.Node) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for ev, err := range node.Events(ctx) {
			if err == nil {
				a.note("%s", ev.Kind) // what is printed may be old news until reconnected
			}
		}
	})
	out := a.events()
	for c, err := range node.Changes(ctx) {
		if err != nil {
			return err
		}
		if c.Kind == fabric.Synced {
			continue
		}
		if err := out.emit(newChangeEvent(c, time.Now())); err != nil {
			return err
		}
	}
	return context.Cause(node.Context())
}

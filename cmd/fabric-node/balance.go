package main

import (
	"context"
	"errors"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/fabric"
)

type balanceFlags struct {
	workers, first, total int
	passive, fork         bool
	master                master
}

func newBalance(a *app) *cobra.Command {
	var f balanceFlags
	cmd := &cobra.Command{
		Use:   "balance",
		Short: "Hold indices of a balance group: libcluster's cluster-test",
		Long: `Join a balance group and print this instance's indices on every change, in the
words and with the flags of libcluster's cluster-test, until INT or TERM.

With -I or -T the cluster is static: no server is contacted, the indices are
-I to -I + -n - 1 of -T.`,
		Example: `  fabric-node balance -v -k mycluster -e dev -i node1 -n 2
  fabric-node balance -k mycluster -P                  # the total, and no index
  fabric-node balance -I 3 -n 4 -T 7                   # static
  fabric-node balance -k mycluster -n 4 -o ndjson`,
		Args: exactly(0, 0, "[-n WORKERS] [-P] [-I FIRST -T TOTAL]"),
	}
	cmd.RunE = a.untilSignal(func(ctx context.Context, _ []string) error { return a.balance(ctx, &f, cmd.Flags()) })
	fs := cmd.Flags()
	fs.IntVarP(&f.workers, "workers", "n", 1, "take `N` indices")
	fs.BoolVarP(&f.passive, "passive", "P", false, "take no index, add no worker")
	fs.IntVarP(&f.first, "first", "I", 0, "static: this instance's first `INDEX`")
	fs.IntVarP(&f.total, "total", "T", 0, "static: `COUNT` of workers in the whole cluster")
	fs.BoolVarP(&f.fork, "fork", "F", false, "refused: a Go process cannot fork")
	fs.Lookup("fork").Hidden = true
	f.master.bindEmbedded(fs)
	return cmd
}

func (a *app) balance(ctx context.Context, f *balanceFlags, fs *pflag.FlagSet) error {
	switch {
	case f.fork:
		return usagef("-F: a Go process cannot fork and go on; start a second instance under its own -i")
	case f.workers < 0:
		return usagef("-n %d: the number of workers cannot be negative", f.workers)
	case fs.Changed("first") && !fs.Changed("total"):
		return usagef("-I needs -T, the total of the static cluster")
	}
	quiet := a.opts
	quiet.verbose = false // -v are cluster-test's lines here
	a.log = a.newLogger(quiet)
	r := newReporter(a, f)
	cfg := balance.Config{
		Group: a.opts.group, Workers: f.workers, Passive: f.passive, OnChange: r.changed, Logger: a.log,
	}
	if fs.Changed("total") {
		r.static = true
		g, err := balance.Static(ctx, f.first, f.workers, f.total, cfg)
		if err != nil {
			return err
		}
		return r.run(ctx, g, g.Leave)
	}
	ep, stopServer, err := a.server(ctx, &f.master, fs)
	if err != nil {
		return err
	}
	return errors.Join(a.balanceOn(ctx, ep, cfg, r), stopServer())
}

func (a *app) balanceOn(ctx context.Context, ep endpoint, cfg balance.Config, r *reporter) error {
	ncfg := a.config(ep, false)
	ncfg.Inbox = fabric.Inbox{Off: true}
	node, err := a.join(ctx, ncfg)
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, a.opts.timeout+2*a.opts.ttl)
		defer cancel()
		var g *balance.Group
		if g, err = balance.Join(limited, node, cfg); err == nil {
			return r.run(ctx, g, node.Leave)
		}
		a.leave(ctx, node, a.opts.timeout)
	}
	if ctx.Err() != nil {
		return nil // a signal came before the group
	}
	return err
}

// A reporter prints the changes of a share, as cluster-test does or as objects.
// The first one comes before there is a group to ask for the members, so changes
// are queued, and printed by run.
type reporter struct {
	app    *app
	text   *clusterTest
	out    *events
	static bool

	ready chan struct{} // holds one token while the queue is not empty
	mu    sync.Mutex
	queue []balance.Share // guarded by mu
}

func newReporter(a *app, f *balanceFlags) *reporter {
	r := &reporter{app: a, out: a.events(), ready: make(chan struct{}, 1)}
	workers := max(f.workers, 1)
	if f.passive {
		workers = 0
	}
	r.text = newClusterTest(a, workers)
	return r
}

func (r *reporter) changed(s balance.Share) {
	r.mu.Lock()
	r.queue = append(r.queue, s)
	r.mu.Unlock()
	select {
	case r.ready <- struct{}{}:
	default:
	}
}

// drain prints what is queued.
func (r *reporter) drain(g *balance.Group) error {
	r.mu.Lock()
	queue := r.queue
	r.queue = nil
	r.mu.Unlock()
	for _, s := range queue {
		if !r.app.table() {
			if err := r.out.emit(newBalancedEvent(s)); err != nil {
				return err
			}
			continue
		}
		var members []balance.Placed
		if !r.static {
			members = g.Members()
		}
		if err := r.text.balanced(s, members, r.static); err != nil {
			return err
		}
	}
	return nil
}

// run prints changes until ctx or the group ends, then leaves and prints the rest.
func (r *reporter) run(ctx context.Context, g *balance.Group, leave func(context.Context) error) error {
	err := r.drain(g)
	r.text.say("cluster joined; sleeping until terminated")
	for err == nil && ctx.Err() == nil && g.Context().Err() == nil {
		select {
		case <-r.ready:
			err = r.drain(g)
		case <-ctx.Done():
		case <-g.Context().Done():
			err = context.Cause(g.Context())
		}
	}
	if ctx.Err() != nil {
		err = nil
		r.text.say("signal received, will terminate")
	}
	r.text.say("will now leave the cluster")
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.app.opts.timeout)
	defer cancel()
	leaveErr := leave(limited)
	err = errors.Join(err, r.drain(g), leaveErr)
	if err == nil {
		r.text.say("successfully left the cluster")
	}
	return err
}

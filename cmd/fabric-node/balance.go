package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/fabric"
)

type balanceFlags struct {
	workers, first, total int
	passive, fork         bool
	partitions            int
	zone                  string
	perZone               bool
	watch                 bool
	master                master
	worker                workerFlags
}

const balanceUsage = "[-n WORKERS] [-P] [-I FIRST -T TOTAL] [-- COMMAND [ARGUMENT]...]"

func newBalance(a *app) *cobra.Command {
	var f balanceFlags
	cmd := &cobra.Command{
		Use:   "balance",
		Short: "Hold indices of a balance group, and run a command for each",
		Long: `Join a balance group and print this instance's indices on every change, in the
words and with the flags of libcluster's cluster-test, until INT or TERM.

With -I or -T the cluster is static: no server is contacted, the indices are
-I to -I + -n - 1 of -T.

With a COMMAND, it runs once for each index, without a shell, in a process group of
its own, with FABRIC_WORKER_INDEX, FABRIC_WORKER_TOTAL, FABRIC_WORKER_EPOCH and
FABRIC_WORKER_LOCAL (0 to -n - 1) in its environment. When its index or the total
changes it is stopped (TERM, after --grace KILL), on Linux with what has left its
process group, and started anew; with --on-change signal:HUP all get the signal
instead, and read --state-file. If the place in the group is lost for good, the exit
code is 75.

With --barrier=index an index starts only when its former holder has stopped, or its
lease has run out; with --barrier=epoch no two work by different totals, either; with
--barrier=off two may have one index for a moment. Without --barrier it is index, but
off with --on-change signal or ignore, which need not stop anybody.

With a barrier FABRIC_WORKER_TOKEN grows with each holder of an index: have it checked
where the work is written down, because a fabric-node that is stopped (SIGSTOP) cannot
stop its workers. The epoch begins again when the server has lost the fabric's bucket,
as one without --store does when it is restarted; the token does not.

With --partitions the group's work is divided into so many, and who has how many is
printed when it changes; with --per-zone all of them in every --zone.

With --watch this process takes nothing and follows the group, however it divides its
work: who joins, leaves and fails and why, who is suspected, and how each stands:
active, passive, not ready, on probation (it failed too often of late), away, evicted.`,
		Example: `  fabric-node balance -v -k mycluster -e dev -i node1 -n 2
  fabric-node balance -k mycluster -P                  # the total, and no index
  fabric-node balance -I 3 -n 4 -T 7                   # static
  fabric-node balance -k mycluster -n 4 -o ndjson
  fabric-node balance -k shop -n 4 -- ./worker         # four of them
  fabric-node balance -k shop --on-change signal:HUP --state-file w.json -- ./worker
  fabric-node balance -k shop --partitions 1024 --zone eu-1 --per-zone
  fabric-node balance -k shop --watch                  # of any of them`,
		Args: balanceArgs,
	}
	cmd.RunE = a.untilSignal(func(ctx context.Context, args []string) error { return a.balance(ctx, &f, cmd.Flags(), args) })
	fs := cmd.Flags()
	fs.IntVarP(&f.workers, "workers", "n", 1, "take `N` indices")
	fs.BoolVarP(&f.passive, "passive", "P", false, "take no index, add no worker")
	fs.IntVarP(&f.first, "first", "I", 0, "static: this instance's first `INDEX`")
	fs.IntVarP(&f.total, "total", "T", 0, "static: `COUNT` of workers in the whole cluster")
	fs.BoolVarP(&f.fork, "fork", "F", false, "refused: a Go process cannot fork")
	fs.Lookup("fork").Hidden = true
	fs.IntVar(&f.partitions, "partitions", 0, "divide the work into `N` partitions")
	fs.StringVar(&f.zone, "zone", "", "with --partitions: where this instance is")
	fs.BoolVar(&f.perZone, "per-zone", false, "with --partitions: one owner of each in every zone")
	fs.BoolVar(&f.watch, "watch", false, "take nothing, and print how the members come, go and stand")
	f.worker.bind(fs)
	f.master.bindEmbedded(fs)
	return cmd
}

func balanceArgs(cmd *cobra.Command, args []string) error {
	usage := cmd.CommandPath() + " " + balanceUsage
	switch dash := cmd.ArgsLenAtDash(); {
	case dash < 0 && len(args) > 0, dash > 0:
		return fmt.Errorf("%q is one argument too many; a command comes after --: %s", args[0], usage)
	case dash == 0 && len(args) == 0:
		return fmt.Errorf("the command is missing after --: %s", usage)
	}
	return nil
}

// checkBalance checks what needs no server.
func checkBalance(f *balanceFlags, fs *pflag.FlagSet, argv []string) error {
	switch {
	case f.fork:
		return usagef("-F: a Go process cannot fork and go on; start a second instance under its own -i")
	case f.workers < 0:
		return usagef("-n %d: the number of workers cannot be negative", f.workers)
	case fs.Changed("first") && !fs.Changed("total"):
		return usagef("-I needs -T, the total of the static cluster")
	case len(argv) > 0 && (f.passive || f.partitions != 0 || fs.Changed("total")):
		return usagef("-P, -T and --partitions do not go with a command")
	}
	if (f.zone != "" || f.perZone) && f.partitions == 0 {
		return usagef("--zone and --per-zone need --partitions")
	}
	if f.watch && (len(argv) > 0 || fs.Changed("total")) {
		return usagef("--watch goes neither with a command nor with -T")
	}
	for _, name := range []string{"on-change", "state-file", "barrier", "restart-policy", "grace"} {
		if len(argv) == 0 && fs.Changed(name) {
			return usagef("--%s needs a command after --", name)
		}
	}
	return nil
}

func (a *app) balance(ctx context.Context, f *balanceFlags, fs *pflag.FlagSet, argv []string) error {
	if err := checkBalance(f, fs, argv); err != nil {
		return err
	}
	f.passive = f.passive || f.watch
	if len(argv) > 0 {
		a.wraps()
		return wrapperError(a.balanceWork(ctx, f, fs, argv))
	}
	quiet := a.opts
	quiet.verbose = false // -v are cluster-test's lines here
	a.log = a.newLogger(quiet)
	r := newReporter(a, f)
	cfg := balance.Config{
		Group: a.opts.group, Workers: f.workers, Passive: f.passive, OnChange: r.changed, Logger: a.log,
		Partitions: f.partitions, Zone: f.zone, PerZone: f.perZone, Settle: f.worker.settle, Rejoin: f.worker.rejoin,
		Probation: f.worker.longestProbation(),
	}
	var err error
	if cfg.Layout, err = f.worker.layOut(); err != nil {
		return err
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

// layOut reads --layout.
func (f *workerFlags) layOut() (balance.Layout, error) {
	switch f.layout {
	case "contiguous":
		return balance.Contiguous, nil
	case "sticky":
		return balance.Sticky, nil
	}
	return 0, usagef("--layout %q: choose contiguous or sticky", f.layout)
}

// balanceWork runs a command for each index.
func (a *app) balanceWork(ctx context.Context, f *balanceFlags, fs *pflag.FlagSet, argv []string) error {
	cfg := balance.Config{Group: a.opts.group, Workers: f.workers, Logger: a.log}
	if err := f.worker.config(&cfg, fs, a.opts.ttl); err != nil {
		return err
	}
	ep, stopServer, err := a.server(ctx, &f.master, fs)
	if err != nil {
		return err
	}
	err = a.work(ctx, ep, cfg, &f.worker, argv)
	if stopErr := stopServer(); stopErr != nil {
		a.log.Error("stop the server", "err", stopErr)
	}
	return err
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
	silent bool   // it only watches
	epoch  uint64 // of the partitions shown last

	ready chan struct{} // holds one token while the queue is not empty
	mu    sync.Mutex
	queue []balance.Share // guarded by mu
}

func newReporter(a *app, f *balanceFlags) *reporter {
	r := &reporter{app: a, out: a.events(), silent: f.watch, ready: make(chan struct{}, 1)}
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
		if r.silent {
			continue
		}
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

func (r *reporter) say(text string) {
	if !r.silent {
		r.text.say(text)
	}
}

// views fires when there is a new view of a group with partitions.
func (r *reporter) views(g *balance.Group) <-chan struct{} {
	if !r.silent && g.Partitions().Count() == 0 {
		return nil
	}
	ch := make(chan struct{}, 1) // capacity 1: only the newest view counts
	go func() {
		for _, err := range g.Shares(g.Context()) {
			if err != nil {
				return
			}
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}()
	return ch
}

// partitions prints who has how many, if that is news.
func (r *reporter) partitions(p *balance.Partitions) error {
	if p.Epoch == r.epoch || p.Count() == 0 {
		return nil
	}
	r.epoch = p.Epoch
	return r.out.emit(newPartitionsEvent(p))
}

// members hands over the changes of the members, if they are to be printed, until the
// group ends.
func (r *reporter) members(g *balance.Group) <-chan balance.Change {
	if !r.silent {
		return nil
	}
	ch := make(chan balance.Change)
	go func() {
		for c, err := range g.Changes(g.Context()) {
			if err != nil {
				return
			}
			select {
			case ch <- c:
			case <-g.Context().Done():
				return
			}
		}
	}()
	return ch
}

// run prints changes until ctx or the group ends, then leaves and prints the rest.
func (r *reporter) run(ctx context.Context, g *balance.Group, leave func(context.Context) error) error {
	err := r.drain(g)
	r.say("cluster joined; sleeping until terminated")
	views, members := r.views(g), r.members(g)
	for err == nil && ctx.Err() == nil && g.Context().Err() == nil {
		select {
		case <-r.ready:
			err = r.drain(g)
		case <-views:
			err = r.partitions(g.Partitions())
		case c := <-members:
			if c.Kind != fabric.Synced {
				err = r.out.emit(newMemberEvent(c, time.Now()))
			}
		case <-ctx.Done():
		case <-g.Context().Done():
			err = context.Cause(g.Context())
		}
	}
	if ctx.Err() != nil {
		err = nil
		r.say("signal received, will terminate")
	}
	r.say("will now leave the cluster")
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.app.opts.timeout)
	defer cancel()
	leaveErr := leave(limited)
	err = errors.Join(err, r.drain(g), leaveErr)
	if err == nil {
		r.say("successfully left the cluster")
	}
	return err
}

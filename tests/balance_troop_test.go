//go:build unix

package tests

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

var troopLease = flag.Duration("balance.lease", fabric.DefaultLease, "the `lease` of the members that the benchmarks of balance measure, but for BalanceIdle")

// victimEnv has the test binary be a member of the group instead of running tests,
// until it is killed: its URL, its environment of the fabric, its PID, its lease.
const victimEnv = "NATSFABRIC_VICTIM"

func init() {
	if text := os.Getenv(victimEnv); text != "" {
		var url, env, pid, lease string
		_, err := fmt.Sscan(text, &url, &env, &pid, &lease)
		if err == nil {
			err = beVictim(context.Background(), url, env, fabric.PID(pid), lease)
		}
		fmt.Println(err)
		os.Exit(1)
	}
}

func beVictim(ctx context.Context, url, env string, pid fabric.PID, lease string) error {
	d, err := time.ParseDuration(lease)
	if err != nil {
		return err
	}
	n, err := fabric.Join(ctx, fabric.Config{Cluster: "t", Env: env, PID: pid, URL: url, Lease: d})
	if err != nil {
		return err
	}
	if _, err := balance.Join(ctx, n, balance.Config{Group: "g"}); err != nil {
		return err
	}
	fmt.Println("in")
	select {} // until it is killed
}

// startVictim returns once the process is in the group.
func startVictim(b *testing.B, url, env, pid string) *exec.Cmd {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+url+" "+env+" "+pid+" "+troopLease.String())
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() }) // fail if it is gone
	if lines := bufio.NewScanner(out); !lines.Scan() || lines.Text() != "in" {
		b.Fatalf("the victim says %q", lines.Text())
	}
	return cmd
}

// A troop is many members of one group in this process, each with a connection.
type troop struct {
	b     *testing.B
	url   string
	env   string
	lease time.Duration // 0: the default
	nodes []*fabric.Node
	calls []atomic.Int64 // of OnChange
	place []atomic.Int64 // of each, the first index
	group []*balance.Group
	tally *natstest.Tally // of the totals that each was told
	first chan time.Time  // capacity 1: when a member was told a total that none had before
	total atomic.Int64    // told last, by any

	lapses atomic.Int64 // leases that ran out although their members live
}

// benchServer starts a server in this process, with SyncAlways as always.
func benchServer(b *testing.B) *embedded.Server {
	b.Helper()
	keepViews(b, 400)
	srv, err := embedded.Start(within(b, patience), embedded.Config{StoreDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.Context()), patience)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			b.Error(err)
		}
	})
	return srv
}

// keepViews: a thousand members in one process have half a gigabyte of views, which each
// would have alone in its own. It is not to be gone through all the time: the heap may grow by
// so many percent first, and the memory is kept.
func keepViews(b *testing.B, percent int) {
	gc := debug.SetGCPercent(percent)
	b.Cleanup(func() { debug.SetGCPercent(gc) })
}

// wave is how many join at a time where it is not the joining that is measured: a
// thousand at once are more than a busy machine takes, and then leases run out.
const wave = 50

// enlist has size members join, so many at once. The first two have the system
// connection.
func enlist(b *testing.B, url, env string, size int, system *nats.Conn, rejoin time.Duration, atOnce int) *troop {
	b.Helper()
	return enlistFor(b, *troopLease, url, env, size, system, rejoin, atOnce)
}

// newTroop returns a troop that nobody is in.
func newTroop(b *testing.B, lease time.Duration, url, env string, size int) *troop {
	tr := &troop{b: b, url: url, env: env, lease: lease, nodes: make([]*fabric.Node, size), calls: make([]atomic.Int64, size),
		place: make([]atomic.Int64, size), group: make([]*balance.Group, size), tally: natstest.NewTally(size), first: make(chan time.Time, 1)}
	b.Cleanup(tr.dismiss)
	return tr
}

// enlistFor is enlist with a lease that no flag says.
func enlistFor(b *testing.B, lease time.Duration, url, env string, size int, system *nats.Conn, rejoin time.Duration, atOnce int) *troop {
	b.Helper()
	tr := newTroop(b, lease, url, env, size)
	told := time.Now()
	for first := 0; first < size; first += atOnce {
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			fmt.Fprintf(os.Stderr, "%s: %d of %d members have joined; %d leases ran out\n", b.Name(), first, size, tr.lapses.Load())
		}
		each(min(atOnce, size-first), func(i int) {
			if err := tr.join(first+i, system, rejoin); err != nil {
				b.Error(err)
			}
		})
		if b.Failed() {
			b.FailNow()
		}
	}
	return tr
}

// dismiss has all leave who have not. A thousand that stay for the next measurement
// would be in its way.
func (tr *troop) dismiss() {
	each(len(tr.nodes), func(i int) {
		if tr.nodes[i] != nil {
			leave(tr.b, tr.nodes[i])
			tr.nodes[i] = nil
		}
	})
}

// disband dismisses the troop, and has the server forget it: some thousand records of which
// each would end by itself later, in the time of another measurement.
func (tr *troop) disband() {
	tr.b.Helper()
	tr.dismiss()
	clear(tr.group) // half a gigabyte
	nc, err := nats.Connect(tr.url)
	if err != nil {
		tr.b.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err == nil {
		err = js.DeleteStream(tr.b.Context(), "KV_fab_t_"+tr.env)
	}
	if err != nil {
		tr.b.Fatal(err)
	}
}

// each calls f for 0 to n-1 at once, and waits.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// all calls f for every member at once, and waits.
func (tr *troop) all(f func(i int) error) {
	tr.b.Helper()
	each(len(tr.nodes), func(i int) {
		if err := f(i); err != nil {
			tr.b.Error(err)
		}
	})
	if tr.b.Failed() {
		tr.b.FailNow()
	}
}

func (tr *troop) join(i int, system *nats.Conn, rejoin time.Duration) error {
	if err := tr.enter(i, system); err != nil {
		return err
	}
	return tr.share(i, rejoin)
}

// enter makes i a member of the fabric.
func (tr *troop) enter(i int, system *nats.Conn) (err error) {
	ctx, cancel := context.WithTimeout(tr.b.Context(), 2*patience)
	defer cancel()
	cfg := fabric.Config{Cluster: "t", Env: tr.env, PID: number(i), URL: tr.url, Lease: tr.lease, Inbox: fabric.Inbox{Off: true}}
	if i < 2 {
		cfg.System = system
	}
	if tr.nodes[i], err = fabric.Join(ctx, cfg); err != nil {
		return err
	}
	go func() {
		for e, err := range tr.nodes[i].Events(tr.b.Context()) {
			if err == nil && e.Kind == fabric.Lost {
				tr.lapses.Add(1)
			}
		}
	}()
	return nil
}

// share makes i, a member of the fabric, one of the group.
func (tr *troop) share(i int, rejoin time.Duration) (err error) {
	ctx, cancel := context.WithTimeout(tr.b.Context(), 2*patience)
	defer cancel()
	tr.group[i], err = balance.Join(ctx, tr.nodes[i], balance.Config{Group: "g", Rejoin: rejoin, OnChange: func(s balance.Share) {
		tr.calls[i].Add(1)
		tr.place[i].Store(int64(s.First))
		if s.First < 0 { // it lost its lease, or leaves: its total is only what it expects
			tr.tally.Saw(i, 0)
			return
		}
		if tr.total.Swap(int64(s.Total)) != int64(s.Total) {
			select {
			case tr.first <- time.Now():
			default:
			}
		}
		tr.tally.Saw(i, s.Total)
	}})
	return err
}

// await returns when so many members were told the total last. It tells of its progress,
// since a thousand members take a while on a busy machine.
func (tr *troop) await(total, members int) {
	tr.b.Helper()
	all := tr.tally.Agreed(total, members)
	progress := time.NewTicker(10 * time.Second)
	defer progress.Stop()
	deadline := time.After(4 * patience)
	for {
		select {
		case <-all:
			return
		case <-progress.C:
			fmt.Fprintf(os.Stderr, "%s: %d members are to have the total %d: %v; %d leases ran out\n", tr.b.Name(), members, total, tr.tally, tr.lapses.Load())
		case <-deadline:
			tr.b.Fatalf("%d members never have the total %d: %v; %d leases ran out", members, total, tr.tally, tr.lapses.Load())
		}
	}
}

// quiet waits until a change is the first for a while, as most are. Before, it has the
// garbage collected: a thousand members in one process have half a gigabyte of views, to go
// through which takes half a second of both cores, and which each would have a thousandth of.
func quiet() {
	runtime.GC()
	<-time.After(3 * time.Second)
}

// percentiles gives the times' median, 99th percentile and maximum in milliseconds, and
// how many leases ran out although their members live: if any did, the machine was too
// busy for so many members, and the times say little.
func percentiles(b *testing.B, took []time.Duration, lapses int64) {
	b.ReportMetric(float64(lapses), "lapses")
	slices.Sort(took)
	for name, at := range map[string]int{"p50": len(took) / 2, "p99": len(took) * 99 / 100, "max": len(took) - 1} {
		b.ReportMetric(float64(took[at].Microseconds())/1000, name+"-ms")
	}
	b.ReportMetric(0, "ns/op")
}

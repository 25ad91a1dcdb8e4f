//go:build unix

package tests

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

// victimEnv has the test binary be a member of the group instead of running tests,
// until it is killed: its URL, its environment of the fabric, its PID.
const victimEnv = "NATSFABRIC_VICTIM"

func init() {
	if text := os.Getenv(victimEnv); text != "" {
		var url, env, pid string
		_, err := fmt.Sscan(text, &url, &env, &pid)
		if err == nil {
			err = beVictim(context.Background(), url, env, fabric.PID(pid))
		}
		fmt.Println(err)
		os.Exit(1)
	}
}

func beVictim(ctx context.Context, url, env string, pid fabric.PID) error {
	n, err := fabric.Join(ctx, fabric.Config{Cluster: "t", Env: env, PID: pid, URL: url})
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
	cmd.Env = append(os.Environ(), victimEnv+"="+url+" "+env+" "+pid)
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
	nodes []*fabric.Node
	calls []atomic.Int64 // of OnChange
	place []atomic.Int64 // of each, the first index
	group []*balance.Group

	mu    sync.Mutex // guards the fields below
	total []int      // what each was told last
	told  map[int]int
	want  int           // a total
	need  int           // how many are to be told it
	all   chan struct{} // closed when they are; nil if nobody waits
}

// benchServer starts a server in this process, with SyncAlways as always.
func benchServer(b *testing.B) *embedded.Server {
	b.Helper()
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

// enlist has size members join at once. The first two have the system connection.
func enlist(b *testing.B, srv *embedded.Server, env string, size int, system *nats.Conn, rejoin time.Duration) *troop {
	b.Helper()
	tr := &troop{b: b, url: srv.ClientURL(), env: env, nodes: make([]*fabric.Node, size), calls: make([]atomic.Int64, size),
		place: make([]atomic.Int64, size), group: make([]*balance.Group, size), total: make([]int, size), told: map[int]int{0: size}}
	b.Cleanup(func() {
		each(size, func(i int) {
			if tr.nodes[i] != nil {
				leave(b, tr.nodes[i])
			}
		})
	})
	each(size, func(i int) {
		if err := tr.join(i, system, rejoin); err != nil {
			b.Error(err)
		}
	})
	if b.Failed() {
		b.FailNow()
	}
	return tr
}

// each calls f for 0 to n-1 at once, and waits.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

func (tr *troop) join(i int, system *nats.Conn, rejoin time.Duration) (err error) {
	ctx, cancel := context.WithTimeout(tr.b.Context(), 2*patience)
	defer cancel()
	cfg := fabric.Config{Cluster: "t", Env: tr.env, PID: number(i), URL: tr.url, Inbox: fabric.Inbox{Off: true}}
	if i < 2 {
		cfg.System = system
	}
	if tr.nodes[i], err = fabric.Join(ctx, cfg); err != nil {
		return err
	}
	tr.group[i], err = balance.Join(ctx, tr.nodes[i], balance.Config{Group: "g", Rejoin: rejoin, OnChange: func(s balance.Share) {
		tr.calls[i].Add(1)
		tr.place[i].Store(int64(s.First))
		tr.mu.Lock()
		defer tr.mu.Unlock()
		tr.told[tr.total[i]]--
		tr.total[i] = s.Total
		tr.told[s.Total]++
		tr.look()
	}})
	return err
}

// look ends await if all were told. It needs mu.
func (tr *troop) look() {
	if tr.all != nil && tr.told[tr.want] >= tr.need {
		close(tr.all)
		tr.all = nil
	}
}

// await returns when so many members were told the total last.
func (tr *troop) await(total, members int) {
	tr.b.Helper()
	all := make(chan struct{})
	tr.mu.Lock()
	tr.want, tr.need, tr.all = total, members, all
	tr.look()
	tr.mu.Unlock()
	select {
	case <-all:
	case <-time.After(2 * patience):
		tr.b.Fatalf("%d members never have the total %d", members, total)
	}
}

// quiet waits until a change is the first for a while, as most are.
func quiet() { <-time.After(3 * time.Second) }

// percentiles gives the times' median, 99th percentile and maximum in milliseconds.
func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	for name, at := range map[string]int{"p50": len(took) / 2, "p99": len(took) * 99 / 100, "max": len(took) - 1} {
		b.ReportMetric(float64(took[at].Microseconds())/1000, name+"-ms")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkBalanceKill kills processes with SIGKILL: the time until the last of the
// other members has its new share.
func BenchmarkBalanceKill(b *testing.B) {
	for _, size := range []int{100, 1000} {
		for _, evidence := range []bool{true, false} {
			b.Run(fmt.Sprintf("members=%d/evidence=%v", size, evidence), func(b *testing.B) {
				srv := benchServer(b)
				var system *nats.Conn
				if evidence {
					system = systemOf(b, srv)
				}
				tr := enlist(b, srv, "kill", size, system, 0)
				var took []time.Duration
				for b.Loop() {
					victim := startVictim(b, tr.url, tr.env, fmt.Sprint("v", len(took)))
					tr.await(size+1, size)
					quiet()
					began := time.Now()
					if err := victim.Process.Signal(syscall.SIGKILL); err != nil {
						b.Fatal(err)
					}
					tr.await(size, size)
					took = append(took, time.Since(began))
				}
				percentiles(b, took)
			})
		}
	}
}

// BenchmarkBalanceKillCoordinator kills the process that coordinates, under the
// default lease.
func BenchmarkBalanceKillCoordinator(b *testing.B) {
	const size = 100
	srv := benchServer(b)
	system := systemOf(b, srv)
	var took []time.Duration
	for b.Loop() {
		env := fmt.Sprint("k", len(took))
		victim := startVictim(b, srv.ClientURL(), env, "v") // the first to come coordinates
		tr := enlist(b, srv, env, size, system, 0)
		tr.await(size+1, size)
		quiet()
		began := time.Now()
		if err := victim.Process.Signal(syscall.SIGKILL); err != nil {
			b.Fatal(err)
		}
		tr.await(size, size)
		took = append(took, time.Since(began))
	}
	percentiles(b, took)
}

// BenchmarkBalanceLeave has members leave, one at a time.
func BenchmarkBalanceLeave(b *testing.B) {
	for _, size := range []int{100, 1000} {
		b.Run(fmt.Sprint("members=", size), func(b *testing.B) {
			tr := enlist(b, benchServer(b), "leave", size, nil, 0)
			var took []time.Duration
			tr.await(size, size)
			for b.Loop() {
				i := len(took) % (size / 2)
				quiet()
				began := time.Now()
				leave(b, tr.nodes[size-1-i])
				tr.await(size-1, size-1)
				took = append(took, time.Since(began))
				if err := tr.join(size-1-i, nil, 0); err != nil {
					b.Fatal(err)
				}
				tr.await(size, size)
			}
			percentiles(b, took)
		})
	}
}

// BenchmarkBalanceJoin has a thousand nodes join a fabric, and then its group, at once.
func BenchmarkBalanceJoin(b *testing.B) {
	const size = 1000
	srv := benchServer(b)
	var took []time.Duration
	views, calls := uint64(0), int64(0)
	for b.Loop() {
		env := fmt.Sprint("j", len(took))
		tr := &troop{}
		began := time.Now()
		tr = enlist(b, srv, env, size, nil, 0)
		last := time.Since(began) // the last Join has returned
		tr.await(size, size)
		took = append(took, time.Since(began)-last)
		b.ReportMetric(last.Seconds(), "joins-s")
		views = max(views, tr.group[0].Share().Epoch)
		for i := range tr.calls {
			calls = max(calls, tr.calls[i].Load())
		}
	}
	percentiles(b, took)
	b.ReportMetric(float64(views), "views")
	b.ReportMetric(float64(calls), "calls/member")
}

// BenchmarkBalanceRolling restarts all members, one after the other, with Rejoin: how
// many of the others' shares change.
func BenchmarkBalanceRolling(b *testing.B) {
	const size = 100
	tr := enlist(b, benchServer(b), "roll", size, nil, time.Minute)
	tr.await(size, size)
	moved := int64(0)
	for b.Loop() {
		for i := range size {
			before := make([]int64, size)
			for j := range before {
				before[j] = tr.calls[j].Load()
			}
			place := tr.place[i].Load()
			leave(b, tr.nodes[i])
			if err := tr.join(i, nil, time.Minute); err != nil {
				b.Fatal(err)
			}
			if tr.place[i].Load() != place {
				moved++
			}
			for j := range before {
				if j != i {
					moved += tr.calls[j].Load() - before[j]
				}
			}
		}
	}
	b.ReportMetric(float64(moved), "changes")
}

// BenchmarkBalanceIdle counts the messages that members cost the server who do
// nothing, in and out, and the processor time of them and the server together.
func BenchmarkBalanceIdle(b *testing.B) {
	const size = 1000
	srv := benchServer(b)
	system := systemOf(b, srv)
	tr := enlist(b, srv, "idle", size, nil, 0)
	tr.await(size, size)
	quiet()
	var in, out int64
	var cpu, took time.Duration
	for b.Loop() {
		in0, out0, cpu0, began := traffic(b, system)
		<-time.After(20 * time.Second)
		in1, out1, cpu1, ended := traffic(b, system)
		in, out, cpu, took = in+in1-in0, out+out1-out0, cpu+cpu1-cpu0, took+ended.Sub(began)
	}
	per := took.Seconds() * size
	b.ReportMetric(float64(in)/per, "in-msg/s/member")
	b.ReportMetric(float64(out)/per, "out-msg/s/member")
	b.ReportMetric(cpu.Seconds()/took.Seconds()*100, "cpu-%")
	b.ReportMetric(0, "ns/op")
}

// traffic returns what the server has taken in and given out so far, and how much
// processor time this process has used.
func traffic(b *testing.B, system *nats.Conn) (in, out int64, cpu time.Duration, at time.Time) {
	b.Helper()
	m, err := system.Request("$SYS.REQ.SERVER.PING.VARZ", nil, 5*time.Second)
	var answer struct {
		Data struct {
			In  int64 `json:"in_msgs"`
			Out int64 `json:"out_msgs"`
		} `json:"data"`
	}
	if err == nil {
		err = json.Unmarshal(m.Data, &answer)
	}
	var usage syscall.Rusage
	if err == nil {
		err = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	}
	if err != nil {
		b.Fatal(err)
	}
	return answer.Data.In, answer.Data.Out, time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), time.Now()
}

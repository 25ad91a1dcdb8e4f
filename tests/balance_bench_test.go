//go:build unix

package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A path is when each step was taken from the end of a process to the new shares.
type path struct {
	victim string                // its PID
	steps  [steps]chan time.Time // capacity 1: the first time counts
}

// The steps, in their order.
const (
	heard     = iota // the server tells of the end of the connection
	suspected        // a member is told that it is asked for
	failed           // a member is told that it is none any more
	shared           // a member has a new share
	steps
)

var stepNames = [steps]string{"heard", "suspected", "failed", "shared"}

// watchPath has mark called with what the first member and the server, if system is not
// nil, tell of the ends of members.
func watchPath(ctx context.Context, b *testing.B, n *fabric.Node, system *nats.Conn, mark func(step int, pid string)) {
	b.Helper()
	if system != nil {
		sub, err := system.Subscribe("$SYS.ACCOUNT.*.DISCONNECT", func(m *nats.Msg) {
			var end struct {
				Client struct {
					Name string `json:"name"`
				} `json:"client"`
			}
			if json.Unmarshal(m.Data, &end) == nil {
				mark(heard, end.Client.Name[strings.LastIndexByte(end.Client.Name, ' ')+1:])
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { sub.Unsubscribe() }) // fails if the connection is gone
	}
	go func() {
		for c, err := range n.Changes(ctx) {
			switch {
			case err != nil:
				return
			case c.Kind == fabric.Suspected:
				mark(suspected, string(c.Member.PID))
			case c.Kind == fabric.Failed:
				mark(failed, string(c.Member.PID))
			}
		}
	}()
}

// BenchmarkBalanceKill kills processes with SIGKILL: the time until the last of the
// other members has its new share; and, as medians, until each step on the way there.
func BenchmarkBalanceKill(b *testing.B) {
	for _, size := range []int{100, 1000} {
		for _, evidence := range []bool{true, false} {
			b.Run(fmt.Sprintf("members=%d/evidence=%v", size, evidence), func(b *testing.B) {
				srv := benchServer(b)
				var system *nats.Conn
				if evidence {
					system = systemOf(b, srv)
				}
				tr := enlist(b, srv, "kill", size, system, 0, wave)
				var now atomic.Pointer[path]
				watchPath(b.Context(), b, tr.nodes[0], system, func(step int, pid string) {
					if p := now.Load(); p != nil && p.victim == pid {
						select {
						case p.steps[step] <- time.Now():
						default:
						}
					}
				})
				var took []time.Duration
				var on [steps][]time.Duration
				for b.Loop() {
					pid := string(number(size + len(took))) // a number as the others: their order stays
					victim := startVictim(b, tr.url, tr.env, pid)
					tr.await(size+1, size)
					quiet()
					p := &path{victim: pid}
					for i := range p.steps {
						p.steps[i] = make(chan time.Time, 1)
					}
					now.Store(p)
					select {
					case <-tr.first:
					default:
					}
					began := time.Now()
					if err := victim.Process.Signal(syscall.SIGKILL); err != nil {
						b.Fatal(err)
					}
					tr.await(size, size)
					took = append(took, time.Since(began))
					p.steps[shared] <- <-tr.first
					for i, c := range p.steps {
						select {
						case at := <-c:
							on[i] = append(on[i], at.Sub(began))
						default: // not told in this case, or later than the shares
						}
					}
				}
				percentiles(b, took, tr.lapses.Load())
				for i, ds := range on {
					if len(ds) > 0 {
						slices.Sort(ds)
						b.ReportMetric(float64(ds[len(ds)/2].Microseconds())/1000, stepNames[i]+"-ms")
					}
				}
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
	lapses := int64(0)
	for b.Loop() {
		env := fmt.Sprint("k", len(took))
		victim := startVictim(b, srv.ClientURL(), env, string(number(size))) // the first to come coordinates
		tr := enlist(b, srv, env, size, system, 0, wave)
		tr.await(size+1, size)
		quiet()
		began := time.Now()
		if err := victim.Process.Signal(syscall.SIGKILL); err != nil {
			b.Fatal(err)
		}
		tr.await(size, size)
		took = append(took, time.Since(began))
		lapses += tr.lapses.Load()
		tr.dismiss()
	}
	percentiles(b, took, lapses)
}

// BenchmarkBalanceLeave has members leave, one at a time.
func BenchmarkBalanceLeave(b *testing.B) {
	for _, size := range []int{100, 1000} {
		b.Run(fmt.Sprint("members=", size), func(b *testing.B) {
			tr := enlist(b, benchServer(b), "leave", size, nil, 0, wave)
			var took []time.Duration
			tr.await(size, size)
			for b.Loop() {
				i := len(took) % (size / 2)
				quiet()
				began := time.Now()
				leave(b, tr.nodes[size-1-i])
				tr.tally.Saw(size-1-i, 0)
				tr.await(size-1, size-1)
				took = append(took, time.Since(began))
				if err := tr.join(size-1-i, nil, 0); err != nil {
					b.Fatal(err)
				}
				tr.await(size, size)
			}
			percentiles(b, took, tr.lapses.Load())
		})
	}
}

// BenchmarkBalanceJoin has a thousand nodes join a fabric, and then its group, at once.
func BenchmarkBalanceJoin(b *testing.B) {
	const size = 1000
	srv := benchServer(b)
	var took []time.Duration
	lapses := int64(0)
	views, calls, joins := uint64(0), int64(0), time.Duration(0)
	for b.Loop() {
		env := fmt.Sprint("j", len(took))
		began := time.Now()
		tr := enlist(b, srv, env, size, nil, 0, size)
		last := time.Since(began) // the last Join has returned
		tr.await(size, size)
		took = append(took, time.Since(began)-last)
		joins = max(joins, last)
		views = max(views, tr.group[0].Share().Epoch)
		for i := range tr.calls {
			calls = max(calls, tr.calls[i].Load())
		}
		lapses += tr.lapses.Load()
		tr.dismiss()
	}
	percentiles(b, took, lapses)
	b.ReportMetric(joins.Seconds(), "joins-max-s")
	b.ReportMetric(float64(views), "views")
	b.ReportMetric(float64(calls), "calls/member")
}

// BenchmarkBalanceRolling restarts members, one after the other, with Rejoin: how many
// of the others' shares change. An iteration is a fifth of them.
func BenchmarkBalanceRolling(b *testing.B) {
	const size = 100
	tr := enlist(b, benchServer(b), "roll", size, nil, time.Minute, wave)
	tr.await(size, size)
	moved, next := int64(0), 0
	for b.Loop() {
		for range size / 5 {
			i := next % size
			next++
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
	tr := enlist(b, srv, "idle", size, nil, 0, wave)
	tr.await(size, size)
	quiet()
	var in, out int64
	var cpu, took time.Duration
	for b.Loop() {
		in0, out0, cpu0, began := traffic(b, system)
		<-time.After(10 * time.Second)
		in1, out1, cpu1, ended := traffic(b, system)
		in, out, cpu, took = in+in1-in0, out+out1-out0, cpu+cpu1-cpu0, took+ended.Sub(began)
	}
	per := took.Seconds() * size
	b.ReportMetric(float64(tr.lapses.Load()), "lapses")
	b.ReportMetric(float64(in)/per, "in-msg/s/member")
	b.ReportMetric(float64(out)/per, "out-msg/s/member")
	b.ReportMetric(cpu.Seconds()/took.Seconds()*100, "cpu-%")
	b.ReportMetric(0, "ns/op")
}

// traffic returns what the server has taken in and given out so far, and how much
// processor time this process has used.
func traffic(b *testing.B, system *nats.Conn) (in, out int64, cpu time.Duration, at time.Time) {
	b.Helper()
	in, out, err := natstest.Traffic(system)
	var usage syscall.Rusage
	if err == nil {
		err = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	}
	if err != nil {
		b.Fatal(err)
	}
	return in, out, time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), time.Now()
}

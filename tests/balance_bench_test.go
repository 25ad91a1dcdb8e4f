//go:build unix

package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/beat"
	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
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
				tr := enlist(b, srv.ClientURL(), "kill", size, system, 0, wave)
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

// BenchmarkBalanceKillCoordinator kills the process that coordinates.
func BenchmarkBalanceKillCoordinator(b *testing.B) {
	const size = 100
	srv := benchServer(b)
	system := systemOf(b, srv)
	var took []time.Duration
	lapses := int64(0)
	for b.Loop() {
		env := fmt.Sprint("k", len(took))
		victim := startVictim(b, srv.ClientURL(), env, string(number(size))) // the first to come coordinates
		tr := enlist(b, srv.ClientURL(), env, size, system, 0, wave)
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
			tr := enlist(b, benchServer(b).ClientURL(), "leave", size, nil, 0, wave)
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

// BenchmarkBalanceJoin has a thousand join a group at once: nodes that are members of the fabric
// already, and nodes that join that, too. The time is that from when the server has stored the last
// one's wish to the last share: balance.Join itself returns with a share. The first time does not
// count, in which the process gets the memory for the views of a thousand.
func BenchmarkBalanceJoin(b *testing.B) {
	const size = 1000
	for _, of := range []struct {
		name string
		here bool
	}{{"members", true}, {"strangers", false}} {
		b.Run(of.name, func(b *testing.B) {
			srv := benchServer(b)
			keepViews(b, 2000) // none are collected while they join
			var took []time.Duration
			views, calls, joins, lapses := uint64(0), int64(0), time.Duration(0), int64(0)
			join := func() (tr *troop, last, end time.Duration) {
				tr = newTroop(b, *troopLease, srv.ClientURL(), nuid.Next(), size)
				if of.here {
					tr.all(func(i int) error { return tr.enter(i, nil) })
				}
				quiet()
				began := time.Now()
				told := wishes(b, srv, tr.env, began)
				tr.all(func(i int) error {
					if of.here {
						return tr.share(i, 0)
					}
					return tr.join(i, nil, 0)
				})
				tr.await(size, size)
				end = time.Since(began)
				return tr, told(), end
			}
			tr, _, _ := join()
			tr.disband()
			for b.Loop() {
				tr, last, end := join()
				took, joins = append(took, end-last), max(joins, last)
				views = max(views, tr.group[0].Share().Epoch)
				for i := range tr.calls {
					calls = max(calls, tr.calls[i].Load())
				}
				lapses += tr.lapses.Load()
				tr.disband()
			}
			percentiles(b, took, lapses)
			b.ReportMetric(joins.Seconds(), "joins-max-s")
			b.ReportMetric(float64(views), "views")
			b.ReportMetric(float64(calls), "calls/member")
		})
	}
}

// wishes returns a function that says how long after began the server stored a wish, the last.
func wishes(b *testing.B, srv *embedded.Server, env string, began time.Time) (last func() time.Duration) {
	b.Helper()
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	var at atomic.Int64
	_, err = nc.Subscribe("fab.t."+env+".kv."+lease.KeyWish("g", "*"), func(*nats.Msg) { at.Store(int64(time.Since(began))) })
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		b.Fatal(err)
	}
	return func() time.Duration { return time.Duration(at.Load()) }
}

// BenchmarkBalanceRolling restarts members, one after the other, with Rejoin: how many
// of the others' shares change. An iteration is a fifth of them.
func BenchmarkBalanceRolling(b *testing.B) {
	for _, size := range []int{100, 1000} {
		b.Run(fmt.Sprint("members=", size), func(b *testing.B) {
			tr := enlist(b, benchServer(b).ClientURL(), "roll", size, nil, time.Minute, wave)
			tr.await(size, size)
			moved, next := int64(0), 0
			for b.Loop() {
				for range size / 5 {
					moved += tr.restart(b, next%size)
					next++
				}
			}
			b.ReportMetric(float64(moved), "changes")
			b.ReportMetric(float64(tr.lapses.Load()), "lapses")
		})
	}
}

// restart has member i leave and come again, with Rejoin, and returns how many shares
// changed meanwhile.
func (tr *troop) restart(b *testing.B, i int) (moved int64) {
	b.Helper()
	before := make([]int64, len(tr.calls))
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
	return moved
}

// BenchmarkBalanceIdle counts what members cost who do nothing, with a server that is a
// process of its own, and syncs each write or not: the messages that each sends and
// receives, and the processor time of the server and of the members. Beside them, of as
// many connections that have nothing else: as many guarded writes as the members renew
// their leases, told to one subscriber; and as many plain messages to one subscriber.
func BenchmarkBalanceIdle(b *testing.B) {
	const size = 1000
	for _, of := range []struct {
		lease  time.Duration
		synced bool
	}{{5 * time.Second, true}, {5 * time.Second, false}, {10 * time.Second, false}, {15 * time.Second, true}, {30 * time.Second, true}} {
		b.Run(fmt.Sprintf("lease=%v,synced=%v", of.lease, of.synced), func(b *testing.B) {
			keepViews(b, 400)
			c, monitor := monitored(b, of.synced)
			tr := enlistFor(b, of.lease, c.URL(), "idle", size, nil, 0, wave)
			tr.await(size, size)
			quiet()
			<-time.After(3 * kv.Reread) // who coordinates reads twice what there is when it begins
			idle(b, c, monitor, size)
			b.ReportMetric(float64(tr.lapses.Load()), "lapses")
		})
	}
	b.Run("writes", func(b *testing.B) {
		c, monitor := monitored(b, false)
		bucket := func(nc *nats.Conn) *kv.Bucket {
			return kv.New(nc, kv.Config{
				Name: "fab_idle", Feed: "fab.idle", Replicas: 1, Lease: fabric.DefaultLease, Logger: slog.New(slog.DiscardHandler),
				Alone: func(context.Context) (bool, error) { return true, nil },
			})
		}
		if err := bucket(dialAll(b, c, 1)[0]).Open(b.Context()); err != nil {
			b.Fatal(err)
		}
		beats(b, dialAll(b, c, size), "fab.idle.>", func(nc *nats.Conn, i int) (send func(value []byte) error, err error) {
			own, session := bucket(nc), fmt.Sprint("s.", i)
			guard := kv.Write{Key: fmt.Sprint("p.", i), Value: []byte("x")}
			rev, err := own.Put(b.Context(), guard)
			return func(value []byte) error {
				_, err := own.Put(b.Context(), kv.Write{Key: session, Value: value, GuardKey: guard.Key, GuardRev: rev, TTL: time.Minute})
				return err
			}, err
		})
		quiet()
		idle(b, c, monitor, size)
	})
	b.Run("messages", func(b *testing.B) {
		c, monitor := monitored(b, false)
		beats(b, dialAll(b, c, size), "idle.>", func(nc *nats.Conn, i int) (send func(value []byte) error, err error) {
			subject := fmt.Sprint("idle.", i)
			return func(value []byte) error { return nc.Publish(subject, value) }, nil
		})
		quiet()
		idle(b, c, monitor, size)
	})
}

// idle reports what nothing costs, in iterations of 10 s.
func idle(b *testing.B, c *natstest.Cluster, monitor string, size int) {
	b.Helper()
	in, out := messagesOf(b, monitor)
	members, server := processorTimes(b, c) // within the count, which costs the server some
	began := time.Now()
	for b.Loop() {
		<-time.After(10 * time.Second)
	}
	endMembers, endServer := processorTimes(b, c)
	took := time.Since(began)
	endIn, endOut := messagesOf(b, monitor)
	per := took.Seconds() * float64(size)
	b.ReportMetric(float64(endIn-in)/per, "sent/s/member")
	b.ReportMetric(float64(endOut-out)/per, "received/s/member")
	b.ReportMetric((endMembers-members).Seconds()/took.Seconds()*100, "members-cpu-%")
	b.ReportMetric((endServer-server).Seconds()/took.Seconds()*100, "server-cpu-%")
	b.ReportMetric(0, "ns/op")
}

// dialAll opens n connections, without pings.
func dialAll(b *testing.B, c *natstest.Cluster, n int) (all []*nats.Conn) {
	b.Helper()
	for range n {
		nc, err := nats.Connect(c.URL(), nats.PingInterval(time.Hour))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(nc.Close)
		all = append(all, nc)
	}
	return all
}

// beats has each connection do what prepare returns, as often as a member renews its lease,
// until the benchmark ends, and one hear all of it.
func beats(b *testing.B, all []*nats.Conn, hear string, prepare func(nc *nats.Conn, i int) (send func(value []byte) error, err error)) {
	b.Helper()
	if _, err := all[0].Subscribe(hear, func(*nats.Msg) {}); err != nil {
		b.Fatal(err)
	}
	value := make([]byte, 200) // about what a session's record has
	for i, nc := range all {
		send, err := prepare(nc, i)
		if err != nil {
			b.Fatal(err)
		}
		go func() {
			const every = fabric.DefaultLease * 3 / 8
			for <-time.After(rand.N(every)); b.Context().Err() == nil; {
				<-time.After(beat.In(time.Now(), every, every/8))
				if err := send(value); err != nil && b.Context().Err() == nil {
					b.Error(err)
					return
				}
			}
		}()
	}
}

// monitored starts a server process that answers HTTP at monitor.
func monitored(b *testing.B, synced bool) (c *natstest.Cluster, monitor string) {
	b.Helper()
	port, err := natstest.FreePort()
	if err != nil {
		b.Fatal(err)
	}
	monitor = fmt.Sprint("127.0.0.1:", port)
	return natstest.StartSetup(b, 1, natstest.Setup{SyncAlways: synced, Config: "http: " + monitor}), monitor
}

// messagesOf returns how many messages clients have sent and received.
func messagesOf(b *testing.B, monitor string) (in, out int64) {
	b.Helper()
	resp, err := http.Get("http://" + monitor + "/connz?limit=10000")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	var connz struct {
		Connections []struct {
			In  int64 `json:"in_msgs"`
			Out int64 `json:"out_msgs"`
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&connz); err != nil {
		b.Fatal(err)
	}
	for _, conn := range connz.Connections {
		in, out = in+conn.In, out+conn.Out
	}
	return in, out
}

// processorTimes returns what this process, which has the members, and the server have used.
func processorTimes(b *testing.B, c *natstest.Cluster) (members, server time.Duration) {
	b.Helper()
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		b.Fatal(err)
	}
	members = time.Duration(own.Utime.Nano() + own.Stime.Nano())
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.PID(0)))
	if err != nil {
		b.Skipf("NOT MEASURED: the server's processor time is read from /proc: %v", err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, ticks := range fields[11:13] { // utime and stime, in hundredths of a second
		n, err := strconv.ParseInt(ticks, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		server += time.Duration(n) * 10 * time.Millisecond
	}
	return members, server
}

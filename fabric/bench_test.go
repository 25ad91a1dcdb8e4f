package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// benchLink is two connections over TCP to a server in this process, with a raw
// subscription and a node at the far end of them: what is compared shares
// everything but the layer under test.
type benchLink struct {
	tx, rx *nats.Conn
	a, b   *Node
	got    atomic.Int64  // by the raw subscription
	want   atomic.Int64  // at which done is sent to
	done   chan struct{} // capacity 1
}

// owned starts a node with a connection like those that nodes make themselves.
func owned(b *testing.B, s *server.Server, pid PID, noBatch bool, opts ...nats.Option) (*nats.Conn, *Node) {
	g := &gate{ping: time.Minute}
	nc := connect(b, s, append(opts, nats.PingInterval(pingEvery*g.ping), func(o *nats.Options) error {
		g.install(o)
		return nil
	})...)
	g.nc.Store(nc)
	return nc, startNode(b, nc, pid, nil, func(c *courierConfig) { c.gate, c.noBatch = g, noBatch })
}

func newBenchLink(b *testing.B, inProcess, noBatch bool) *benchLink {
	s := startServer(b)
	opts := []nats.Option{nats.SkipSubjectValidation()}
	if inProcess {
		opts = append(opts, nats.InProcessServer(s))
	}
	l := &benchLink{done: make(chan struct{}, 1)}
	l.tx, l.a = owned(b, s, "a", noBatch, opts...)
	l.rx, l.b = owned(b, s, "b", noBatch, opts...)
	sub, err := l.rx.Subscribe("raw.c1.test.u.b.a", func(*nats.Msg) {
		if l.got.Add(1) == l.want.Load() {
			l.done <- struct{}{}
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		b.Fatal(err)
	}
	if err := l.rx.Flush(); err != nil {
		b.Fatal(err)
	}
	return l
}

func (l *benchLink) raw(b *testing.B, n int, data []byte) { l.rawReply(b, n, "", data) }

// rawReply is raw of several, with a reply subject, as the fabric's messages have one.
func (l *benchLink) rawReply(b *testing.B, n int, reply string, datas ...[]byte) {
	l.want.Add(int64(n * len(datas)))
	for range n {
		for _, data := range datas {
			if err := l.tx.PublishRequest("raw.c1.test.u.b.a", reply, data); err != nil {
				b.Fatal(err)
			}
		}
	}
	<-l.done
}

// node sends n messages from a node to b, and returns when b has received them.
func (l *benchLink) node(b *testing.B, from *Node, mode Mode, n int, data []byte) {
	ctx, cancel := context.WithCancelCause(b.Context())
	defer cancel(nil)
	go func() {
		m := Message{To: "b", Mode: mode, Data: data}
		for range n {
			var err error
			if mode == Fast {
				err = from.Send(ctx, "b", data)
			} else {
				err = from.SendMsg(ctx, &m)
			}
			if err != nil {
				cancel(err)
				return
			}
		}
	}()
	for range n {
		if _, err := l.b.Receive(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// spent is the wall and the CPU time of this process so far.
func spent() (wall time.Time, cpu time.Duration) {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Now(), time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

type cost struct{ wall, cpu time.Duration }

// measure returns what f costs. It begins without garbage, as package testing has each
// benchmark begin: or f would pay for what was measured before it.
func measure(f func()) cost {
	runtime.GC()
	w, c := spent()
	f()
	w1, c1 := spent()
	return cost{w1.Sub(w), c1 - c}
}

func median(xs []float64) float64 {
	slices.SortFunc(xs, cmp.Compare[float64])
	return xs[len(xs)/2]
}

// BenchmarkSend compares one-way messages with raw publishes: x-raw is the share
// of the raw throughput, x-raw-cpu of the raw messages for the same CPU time of
// sender, server and receiver; the same of raw publishes with a reply subject are
// x-reply and x-reply-cpu. Medians of rounds that alternate.
func BenchmarkSend(b *testing.B) {
	const round = 50_000 // fits an inbox
	for _, way := range []string{"bare", "gathered", "reliable"} {
		for _, size := range []int{16, 128, 1024} {
			b.Run(fmt.Sprintf("%s/%d", way, size), func(b *testing.B) {
				l, mode := newBenchLink(b, false, way == "bare"), Fast
				if way == "reliable" {
					mode = Reliable
				}
				l.compare(b, l.a, mode, round, make([]byte, size))
			})
		}
	}
}

// BenchmarkLarge is BenchmarkSend with 10 MB, beside raw publishes of the parts alone, without
// flow control, so that what the receiver misses is lost; and beside the same that both ends
// check and the receiver joins.
func BenchmarkLarge(b *testing.B) {
	l := newBenchLink(b, false, false)
	const size, round = 10_000_000, 10
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	parts := slices.Collect(slices.Chunk(data, maxChunk))
	joined := l.join(b, size)
	for _, beside := range []struct {
		name string
		raw  func()
	}{
		{"parts", func() { l.rawReply(b, round, "", parts...) }},
		{"joined", func() { joined(round, parts) }},
	} {
		b.Run(beside.name, func(b *testing.B) {
			l.compareWith(b, round, round*size, beside.raw,
				func() { l.node(b, l.a, Reliable, round, data) }, func(cost) {})
		})
	}
}

// join returns what publishes parts, which are size bytes, n times, and returns when the far
// end has put them together. Both ends compute a checksum, and there is nothing else: it is
// what a message in parts costs at least, with nothing for one that is lost.
func (l *benchLink) join(b *testing.B, size int) func(n int, parts [][]byte) {
	var whole []byte
	sum, got := uint32(0), make(chan struct{}, 1)
	sub, err := l.rx.Subscribe("raw.c1.test.join", func(m *nats.Msg) {
		if whole == nil {
			whole = uncleared(size)
		}
		sum = crc32.Update(sum, castagnoli, m.Data)
		if whole = append(whole, m.Data...); len(whole) == size {
			whole = nil
			got <- struct{}{}
		}
	})
	if err == nil {
		err = errors.Join(sub.SetPendingLimits(-1, -1), l.rx.Flush())
	}
	if err != nil {
		b.Fatal(err)
	}
	return func(n int, parts [][]byte) {
		go func() {
			sum := uint32(0)
			for range n {
				for _, part := range parts {
					sum = crc32.Update(sum, castagnoli, part)
					if err := l.tx.Publish("raw.c1.test.join", part); err != nil {
						b.Error(err)
					}
				}
			}
		}()
		for range n {
			<-got
		}
	}
}

func (l *benchLink) compare(b *testing.B, from *Node, mode Mode, round int, data []byte) {
	var wall, cpu []float64
	l.compareWith(b, round, round*len(data),
		func() { l.raw(b, round, data) },
		func() { l.node(b, from, mode, round, data) },
		func(node cost) {
			raw := measure(func() { l.rawReply(b, round, "raw.c1.test.r.a.b.s000000.1000", data) })
			wall = append(wall, float64(raw.wall)/float64(node.wall))
			cpu = append(cpu, float64(raw.cpu)/float64(node.cpu))
		})
	b.ReportMetric(median(wall), "x-reply")
	b.ReportMetric(median(cpu), "x-reply-cpu")
}

func (l *benchLink) compareWith(b *testing.B, round, bytes int, raw, node func(), after func(node cost)) {
	raw()
	node()
	var wall, cpu []float64
	var total time.Duration
	for b.Loop() {
		r, n := measure(raw), measure(node)
		wall = append(wall, float64(r.wall)/float64(n.wall))
		cpu = append(cpu, float64(r.cpu)/float64(n.cpu))
		total += n.wall
		after(n)
	}
	b.ReportMetric(median(wall), "x-raw")
	b.ReportMetric(median(cpu), "x-raw-cpu")
	b.ReportMetric(float64(round*b.N)/total.Seconds(), "msg/s")
	b.ReportMetric(float64(bytes*b.N)/1e6/total.Seconds(), "MB/s")
	if s := l.b.Stats(); s.Rejected != 0 || s.Invalid != 0 {
		b.Errorf("%+v", s)
	}
}

// BenchmarkRequest compares requests, one at a time and 64 at once, over TCP and in
// process, with nc.Request: x-raw-p50 is the median latency over the raw one, x-raw the
// throughput over the raw one.
func BenchmarkRequest(b *testing.B) {
	for _, bb := range []struct {
		name      string
		callers   int
		inProcess bool
	}{{"tcp/1", 1, false}, {"tcp/64", 64, false}, {"inproc/1", 1, true}, {"inproc/64", 64, true}} {
		b.Run(bb.name, func(b *testing.B) {
			callers := bb.callers
			l := newBenchLink(b, bb.inProcess, false)
			ctx := b.Context()
			if _, err := l.rx.Subscribe("raw.q", func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
				b.Fatal(err)
			}
			go func() { _ = l.b.Handle(ctx, 1, echo) }()
			if err := l.rx.Flush(); err != nil {
				b.Fatal(err)
			}
			data := make([]byte, 16)
			raw := func() error { _, err := l.tx.Request("raw.q", data, 5*time.Second); return err }
			node := func() error { _, err := l.a.Request(ctx, "b", data); return err }
			const round = 2000
			latencies(b, callers, round, raw)
			latencies(b, callers, round, node)
			var p50, rate, us []float64
			for b.Loop() {
				r, rawWall := latencies(b, callers, round, raw)
				n, nodeWall := latencies(b, callers, round, node)
				p50 = append(p50, n/r)
				us = append(us, n/1000)
				rate = append(rate, rawWall/nodeWall)
			}
			b.ReportMetric(median(p50), "x-raw-p50")
			b.ReportMetric(median(rate), "x-raw")
			b.ReportMetric(median(us), "p50-us")
		})
	}
}

// latencies makes n calls of f by so many callers and returns the median latency
// and the time all of them took, in nanoseconds.
func latencies(b *testing.B, callers, n int, f func() error) (p50, wall float64) {
	all := make([]float64, n)
	errs := make(chan error, callers)
	var next atomic.Int64
	began := time.Now()
	for range callers {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					errs <- nil
					return
				}
				t := time.Now()
				if err := f(); err != nil {
					errs <- err
					return
				}
				all[i] = float64(time.Since(t))
			}
		}()
	}
	for range callers {
		if err := <-errs; err != nil {
			b.Fatal(err)
		}
	}
	wall = float64(time.Since(began))
	return median(all), wall
}

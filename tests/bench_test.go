package tests

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A loop passes messages round a ring of connections; raw and nodes are alike but
// for the layer under test.
type loop struct {
	send     func() error // by the first, to the second
	received chan error   // capacity: a whole round, so that nobody waits
}

// rawLoop is made of plain connections, each with a channel as an inbox.
func rawLoop(b *testing.B, s *natstest.Server, size, round int) loop {
	b.Helper()
	l := loop{received: make(chan error, round)}
	data := make([]byte, 16)
	subject := func(i int) string { return fmt.Sprintf("raw.ring.u.%d.%d", (i+1)%size, i) }
	conns := make([]*nats.Conn, size)
	var wg sync.WaitGroup
	for i := range conns {
		conns[i] = s.Connect(nats.SkipSubjectValidation())
		inbox := make(chan *nats.Msg, round)
		sub, err := conns[i].ChanSubscribe(fmt.Sprintf("raw.ring.u.%d.*", i), inbox)
		if err != nil {
			b.Fatal(err)
		}
		if err := conns[i].Flush(); err != nil {
			b.Fatal(err)
		}
		next := subject(i)
		ctx := b.Context()
		wg.Go(func() {
			for {
				select {
				case m := <-inbox:
					if i == 0 {
						l.received <- nil
					} else if err := conns[i].Publish(next, m.Data); err != nil {
						l.received <- err
					}
				case <-ctx.Done():
					_ = sub.Unsubscribe() // the connection ends with the benchmark
					return
				}
			}
		})
	}
	b.Cleanup(wg.Wait)
	l.send = func() error { return conns[0].Publish(subject(0), data) }
	return l
}

// nodeLoop is made of nodes with default inboxes.
func nodeLoop(b *testing.B, s *natstest.Server, size, round int) loop {
	b.Helper()
	l := loop{received: make(chan error, round)}
	data := make([]byte, 16)
	nodes := joinMany(b, s.URL(), size)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	for i, n := range nodes {
		next := number((i + 1) % size)
		wg.Go(func() {
			for m, err := range n.Messages(ctx) {
				switch {
				case ctx.Err() != nil:
					return
				case err == nil && i == 0:
					l.received <- nil
					continue
				case err == nil:
					err = n.Send(ctx, next, m.Data)
				}
				if err != nil {
					l.received <- err
				}
			}
		})
	}
	b.Cleanup(func() { cancel(); wg.Wait() })
	l.send = func() error { return nodes[0].Send(ctx, "1", data) }
	return l
}

// turn sends a round of messages and waits until all are back.
func (l loop) turn(b *testing.B, round int) time.Duration {
	b.Helper()
	began := time.Now()
	for range round {
		if err := l.send(); err != nil {
			b.Fatal(err)
		}
	}
	limit := time.NewTimer(2 * patience)
	defer limit.Stop()
	for i := range round {
		select {
		case err := <-l.received:
			if err != nil {
				b.Fatal(err)
			}
		case <-limit.C:
			b.Fatalf("%d of %d messages are back", i, round)
		}
	}
	return time.Since(began)
}

// BenchmarkRing compares a ring of nodes with one of plain connections: x-raw is
// the share of the raw throughput, of rounds that alternate.
func BenchmarkRing(b *testing.B) {
	const round = 1000
	for _, size := range []int{100, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := natstest.Start(b)
			raw, node := rawLoop(b, s, size, round), nodeLoop(b, s, size, round)
			raw.turn(b, round)
			node.turn(b, round)
			var rawTook, nodeTook time.Duration
			for b.Loop() {
				rawTook += raw.turn(b, round)
				nodeTook += node.turn(b, round)
			}
			b.ReportMetric(rawTook.Seconds()/nodeTook.Seconds(), "x-raw")
			b.ReportMetric(float64(size*round*b.N)/nodeTook.Seconds(), "hops/s")
			b.ReportMetric(float64(size*round*b.N)/rawTook.Seconds(), "raw-hops/s")
		})
	}
}

// BenchmarkBroadcast has five send 10 000 messages each to all the others, as
// ClusterTalk's test does, beside plain connections that have a subject each,
// a wildcard, and NoEcho: x-raw is the share of the raw deliveries a second, the median
// of rounds that alternate.
func BenchmarkBroadcast(b *testing.B) {
	const size, each, expected = 5, 10_000, 4 * 10_000
	s := natstest.Start(b)
	data := make([]byte, 16)
	conns, inboxes := make([]*nats.Conn, size), make([]chan *nats.Msg, size)
	for i := range conns {
		conns[i], inboxes[i] = s.Connect(nats.SkipSubjectValidation(), nats.NoEcho()), make(chan *nats.Msg, expected)
		if _, err := conns[i].ChanSubscribe("raw.b.*", inboxes[i]); err != nil {
			b.Fatal(err)
		}
		if err := conns[i].Flush(); err != nil {
			b.Fatal(err)
		}
	}
	nodes := joinMany(b, s.URL(), size)
	ctx := within(b, 10*patience)
	raw := func(i int) error {
		sent := make(chan error, 1) // capacity 1: read when all is received
		go func() {
			subject := fmt.Sprint("raw.b.", i)
			for range each {
				if err := conns[i].Publish(subject, data); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		for range expected {
			select {
			case <-inboxes[i]:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return <-sent
	}
	node := func(i int) error {
		sent := make(chan error, 1) // capacity 1: read when all is received
		go func() {
			for range each {
				if err := nodes[i].Broadcast(ctx, data); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		for range expected {
			if _, err := nodes[i].Receive(ctx); err != nil {
				return err
			}
		}
		return <-sent
	}
	round := func(one func(int) error) time.Duration {
		began := time.Now()
		errs := make(chan error, size)
		for i := range size {
			go func() { errs <- one(i) }()
		}
		for range size {
			if err := <-errs; err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(began)
	}
	round(raw)
	round(node)
	var ratios []float64
	var took time.Duration
	for b.Loop() {
		r, n := round(raw), round(node)
		ratios = append(ratios, float64(r)/float64(n))
		took += n
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "x-raw")
	b.ReportMetric(float64(size*expected*b.N)/took.Seconds(), "deliveries/s")
}

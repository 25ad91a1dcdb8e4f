package election_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// percentiles reports the median, the 99th percentile and the maximum.
func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	at := func(p int) float64 {
		return took[min(len(took)-1, len(took)*p/100)].Seconds() * 1000
	}
	b.ReportMetric(at(50), "p50-ms")
	b.ReportMetric(at(99), "p99-ms")
	b.ReportMetric(at(100), "max-ms")
	b.ReportMetric(0, "ns/op") // a hand-over is not the whole of an iteration
}

// benchJoin joins over a connection of its own, in real time, and returns the way to
// end it without a word.
func benchJoin(b *testing.B, s *natstest.Server, pid string, lease time.Duration) (n *fabric.Node, crash func()) {
	b.Helper()
	nc := s.Connect()
	n, err := fabric.Join(b.Context(), fabric.Config{Cluster: "c", PID: fabric.PID(pid), Lease: lease, Conn: nc})
	if err != nil {
		b.Fatal(err)
	}
	return n, nc.Close
}

func benchElection(b *testing.B, n *fabric.Node) *election.Election {
	b.Helper()
	e, err := election.New(n, election.Config{Name: "x"})
	if err != nil {
		b.Fatal(err)
	}
	return e
}

// won is a term and when it began.
type won struct {
	term *election.Term
	at   time.Time
}

// follow campaigns in the background.
func follow(b *testing.B, e *election.Election) <-chan won {
	c := make(chan won, 1)
	go func() {
		term, err := e.Campaign(b.Context())
		if err != nil {
			b.Errorf("Campaign: %v", err)
		}
		c <- won{term, time.Now()}
	}()
	return c
}

// stands returns when the candidate waits for the leader, and a while after that, so
// that the leader has it in its queue.
func stands(b *testing.B, e *election.Election) {
	b.Helper()
	for e.State() != election.Follower {
		time.Sleep(100 * time.Microsecond)
	}
	time.Sleep(20 * time.Millisecond)
}

// handOver measures from the moment that give is called to the next leader's term.
func handOver(b *testing.B, give func(context.Context, *election.Term, fabric.PID) error) {
	s := natstest.Start(b)
	na, _ := benchJoin(b, s, "a", fabric.DefaultLease)
	nb, _ := benchJoin(b, s, "b", fabric.DefaultLease)
	defer na.Leave(context.WithoutCancel(b.Context()))
	defer nb.Leave(context.WithoutCancel(b.Context()))
	es := []*election.Election{benchElection(b, na), benchElection(b, nb)}
	pids := []fabric.PID{"a", "b"}
	term, err := es[0].Campaign(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for i := 1; b.Loop(); i++ {
		next := follow(b, es[i%2])
		stands(b, es[i%2])
		began := time.Now()
		if err := give(b.Context(), term, pids[i%2]); err != nil {
			b.Fatal(err)
		}
		w := <-next
		took = append(took, w.at.Sub(began))
		term = w.term
	}
	percentiles(b, took)
	term.Resign(b.Context())
}

// BenchmarkResign: from Resign to the next leader's term.
func BenchmarkResign(b *testing.B) {
	handOver(b, func(ctx context.Context, t *election.Term, _ fabric.PID) error { return t.Resign(ctx) })
}

// BenchmarkTransfer: from Transfer to the next leader's term.
func BenchmarkTransfer(b *testing.B) {
	handOver(b, func(ctx context.Context, t *election.Term, to fabric.PID) error {
		_, err := t.Transfer(ctx, to)
		return err
	})
}

// BenchmarkCrash: from the end of the leader's connection to the next leader's term.
//
//	go test ./election -run '^$' -bench Crash -benchtime 20x
func BenchmarkCrash(b *testing.B) {
	for _, lease := range []time.Duration{time.Second, 2 * time.Second} {
		b.Run(fmt.Sprint(lease), func(b *testing.B) {
			s := natstest.Start(b)
			n, end := benchJoin(b, s, "p0", lease)
			term, err := benchElection(b, n).Campaign(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			var took []time.Duration
			for i := 1; b.Loop(); i++ {
				next, endNext := benchJoin(b, s, fmt.Sprint("p", i), lease)
				e := benchElection(b, next)
				c := follow(b, e)
				stands(b, e)
				time.Sleep(time.Duration(i*137%1000) * lease / 3000) // at any time since a renewal
				began := time.Now()
				end()
				w := <-c
				took = append(took, w.at.Sub(began))
				if term.Valid() {
					b.Error("the term of the process that crashed is valid")
				}
				end, term = endNext, w.term
			}
			percentiles(b, took)
			end()
		})
	}
}

// BenchmarkPut is a value that only the leader can store, beside the same write
// without a guard.
func BenchmarkPut(b *testing.B) {
	s := natstest.Start(b)
	n, _ := benchJoin(b, s, "a", fabric.DefaultLease)
	defer n.Leave(context.WithoutCancel(b.Context()))
	term, err := benchElection(b, n).Campaign(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("guarded", func(b *testing.B) {
		for b.Loop() {
			if err := term.Put(b.Context(), "k", []byte("value")); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("plain", func(b *testing.B) {
		nc := s.Connect()
		for b.Loop() {
			if _, err := nc.RequestMsg(&nats.Msg{Subject: "$KV.fab_c_production.e.x.k", Data: []byte("value")}, time.Second); err != nil {
				b.Fatal(err)
			}
		}
	})
	term.Resign(b.Context())
}

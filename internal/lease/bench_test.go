package lease_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// BenchmarkTakeover is from the end of a holder's connection to the next one's grant,
// also for a lease that is shorter than a fabric admits.
//
//	go test ./internal/lease -run '^$' -bench Takeover -benchtime 40x
func BenchmarkTakeover(b *testing.B) {
	for _, l := range []time.Duration{300 * time.Millisecond, time.Second, 2 * time.Second} {
		b.Run(fmt.Sprint(l), func(b *testing.B) {
			srv := natstest.Start(b)
			begin := func(pid string) (s *lease.Session, crash func()) {
				nc := srv.Connect()
				bucket := kv.New(nc, kv.Config{
					Name: "fab_test_production", Feed: "fab.test.production.kv", Replicas: 1, Lease: l, Logger: slog.New(slog.DiscardHandler),
					Alone: func(context.Context) (bool, error) { return true, nil },
				})
				if err := bucket.Open(b.Context()); err != nil {
					b.Fatal(err)
				}
				s, err := lease.Start(b.Context(), bucket, lease.Config{PID: pid, Lease: l, Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					b.Fatal(err)
				}
				return s, func() { nc.Close(); s.Fail(errors.New("crashed")) }
			}
			s, crash := begin("p0")
			g, err := s.Claim("c.e.x").Acquire(b.Context(), 0)
			if err != nil {
				b.Fatal(err)
			}
			var took []time.Duration
			for i := 1; b.Loop(); i++ {
				next, crashNext := begin(fmt.Sprint("p", i))
				time.Sleep(time.Duration(i*137%1000) * l / 3000) // at any time since a renewal
				won := make(chan time.Time, 1)
				var taken *lease.Grant
				go func() {
					var err error
					if taken, err = next.Claim("c.e.x").Acquire(b.Context(), 0); err != nil {
						b.Error(err)
					}
					won <- time.Now()
				}()
				for next.Claim("c.e.x").Phase() != lease.PhaseWaiting {
					time.Sleep(100 * time.Microsecond)
				}
				began := time.Now()
				crash()
				took = append(took, (<-won).Sub(began))
				if g.Valid() {
					b.Error("the grant of the process that crashed is valid")
				}
				g, crash = taken, crashNext
			}
			crash()
			slices.Sort(took)
			at := func(p int) float64 { return took[min(len(took)-1, len(took)*p/100)].Seconds() * 1000 }
			b.ReportMetric(at(50), "p50-ms")
			b.ReportMetric(at(99), "p99-ms")
			b.ReportMetric(at(100), "max-ms")
			b.ReportMetric(0, "ns/op") // a takeover is not the whole of an iteration
		})
	}
}

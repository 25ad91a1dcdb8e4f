package election_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// stalled is a log handler that nobody reads, from when a term is lost on.
type stalled struct {
	slog.Handler
	release chan struct{}
}

func (h stalled) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "term lost" || r.Message == "lease lost" || r.Message == "asked to hand over" {
		<-h.release
	}
	return nil
}

func (h stalled) Enabled(context.Context, slog.Level) bool { return true }

func (h stalled) WithAttrs([]slog.Attr) slog.Handler { return h }

// TestStalledLoggerKeepsNoTerm: a term's context ends in time although its logger does not
// take what it is told.
func TestStalledLoggerKeepsNoTerm(t *testing.T) {
	for _, lost := range []bool{true, false} {
		t.Run(fmt.Sprint("lost ", lost), func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				h := stalled{slog.DiscardHandler, make(chan struct{})}
				a, link := joinLink(t, s, "a", func(c *fabric.Config) { c.Logger = slog.New(h) })
				b := join(t, s, "b")
				e, err := election.New(a, election.Config{Name: "x", Logger: slog.New(h)})
				if err != nil {
					t.Fatal(err)
				}
				term := campaign(t, e)
				other := of(t, b, 0)
				won := make(chan *election.Term, 1)
				go func() { won <- campaign(t, other) }()
				time.Sleep(time.Second)
				asked := make(chan error, 1)
				if lost {
					link.Cut()
					<-won
				} else {
					go func() {
						_, err := other.AskTransfer(within(t, time.Minute), "b")
						asked <- err
					}()
					time.Sleep(time.Second)
				}
				if term.Context().Err() == nil {
					t.Error("the context of a's term has not ended")
				}
				close(h.release)
				link.Heal()
				if lost {
					return
				}
				if err := term.Resign(t.Context()); err != nil {
					t.Error(err)
				}
				<-won
				if err := <-asked; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

package election_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// ttl is the lease of every node here.
const ttl = fabric.DefaultLease

// options dial over a link that can be cut.
func options(l *natstest.Link) []nats.Option {
	return append(natstest.FastOptions(), nats.InProcessServer(l))
}

func logger(t *testing.T, pid string) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", pid)
}

// within returns a context for a step that must not take longer.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func joinLink(t *testing.T, s *natstest.Server, pid string, tune ...func(*fabric.Config)) (*fabric.Node, *natstest.Link) {
	t.Helper()
	l := s.Link()
	cfg := fabric.Config{Cluster: "c", PID: fabric.PID(pid), NATS: options(l), Logger: logger(t, pid)}
	for _, f := range tune {
		f(&cfg)
	}
	n, err := fabric.Join(within(t, time.Minute), cfg)
	if err != nil {
		t.Fatalf("join as %s: %v", pid, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		if err := n.Leave(ctx); err != nil {
			t.Logf("leave %s: %v", pid, err) // a link that is still cut
		}
	})
	return n, l
}

func join(t *testing.T, s *natstest.Server, pid string, tune ...func(*fabric.Config)) *fabric.Node {
	t.Helper()
	n, _ := joinLink(t, s, pid, tune...)
	return n
}

func of(t *testing.T, n *fabric.Node, grace time.Duration) *election.Election {
	t.Helper()
	e, err := election.New(n, election.Config{Name: "x", Grace: grace, Logger: logger(t, string(n.PID()))})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

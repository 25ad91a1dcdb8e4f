package election_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

func limited(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), d)
	t.Cleanup(cancel)
	return ctx
}

func joinFor(t *testing.T, s *natstest.Server, pid string, lease time.Duration) *fabric.Node {
	t.Helper()
	n, err := fabric.Join(limited(t, 5*time.Minute), fabric.Config{
		Cluster: "c", PID: fabric.PID(pid), Lease: lease,
		NATS: append(natstest.FastOptions(), nats.InProcessServer(s.Link())),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Leave(limited(t, time.Second)) })
	return n
}

// The bucket is lost, and who makes it anew does not know how long a lease the
// leader has: it must have stopped before the new bucket opens.
func TestLeaderWithALongLeaseStopsBeforeALostBucketIsOpenAgain(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := joinFor(t, s, "a", 2*time.Minute)
		ta := campaign(t, of(t, a, 0))
		time.Sleep(time.Second)
		if _, err := s.Connect().Request("$JS.API.STREAM.DELETE.KV_fab_c_production", nil, time.Second); err != nil {
			t.Fatal(err)
		}
		b := joinFor(t, s, "b", time.Second)
		tb := campaign(t, of(t, b, 0))
		if ta.Valid() {
			t.Error("two terms are valid at once")
		}
		if tb.Token() <= ta.Token() {
			t.Errorf("token %d after %d", tb.Token(), ta.Token())
		}
	})
}

// Another process takes the PID: whoever campaigns is told so, at whatever moment.
func TestCampaignSaysWhyTheNodeEnded(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		l := s.Link()
		a, err := fabric.Join(limited(t, time.Minute), fabric.Config{
			Cluster: "c", PID: "a", NATS: append(natstest.FastOptions(), nats.InProcessServer(l)),
		})
		if err != nil {
			t.Fatal(err)
		}
		b := joinFor(t, s, "b", 5*time.Second)
		tb := campaign(t, of(t, b, 0))
		e, err := election.New(a, election.Config{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() { _, err := e.Campaign(context.WithoutCancel(t.Context())); got <- err }()
		l.Cut()
		joinFor(t, s, "a", 5*time.Second)
		l.Heal()
		if err := <-got; !errors.Is(err, fabric.ErrPIDInUse) {
			t.Errorf("Campaign = %v, want ErrPIDInUse", err)
		}
		tb.Resign(limited(t, time.Second))
		a.Leave(limited(t, time.Second))
	})
}

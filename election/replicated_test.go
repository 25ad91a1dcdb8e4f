package election_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// On three servers one write under a guard may be in flight at a time, a leader of
// the stream may step down at any moment, and reads may be old.
func TestFencingOnACluster(t *testing.T) {
	if testing.Short() {
		t.Skip("forms a cluster of servers, which takes seconds")
	}
	c := natstest.StartCluster(t, 3)
	c.WaitReady()
	member := func(pid string) *fabric.Node {
		n, err := fabric.Join(within(t, time.Minute), fabric.Config{
			Cluster: "c", PID: fabric.PID(pid), URL: c.URL(), Lease: 20 * time.Second, Logger: logger(t, pid),
			NATS: []nats.Option{nats.IgnoreDiscoveredServers()},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Leave(limited(t, 5*time.Second)) })
		return n
	}
	js, stream := orders(t, c.Connect(), func(c *jetstream.StreamConfig) { c.Replicas = 3 })
	ea, eb := of(t, member("a"), 0), of(t, member("b"), 0)
	ta := campaign(t, ea)
	pa := fence(t, js, ta)
	c.StepDown("ORDERS")
	hammer(t, pa, 80)
	c.StepDown("KV_fab_c_production")
	const puts = 30
	done := make(chan error)
	for i := range puts {
		go func() { done <- ta.Put(within(t, time.Minute), fmt.Sprint("k", i%5), fmt.Append(nil, i)) }()
	}
	for range puts {
		if err := <-done; err != nil {
			t.Errorf("Put: %v", err)
		}
	}
	put(t, ta, "cursor", "80")
	next := inBackground(t, eb)
	if _, err := ta.Transfer(within(t, 30*time.Second), "b"); err != nil {
		t.Fatalf("Transfer: %v", err)
	}
	tb := <-next
	wantKept(t, tb, "cursor", "80")
	pb := fence(t, js, tb)
	if _, err := pa.Publish(within(t, 10*time.Second), "orders.new", []byte("late")); !errors.Is(err, election.ErrFenced) {
		t.Errorf("Publish of the leader before = %v, want ErrFenced", err)
	}
	publish(t, pb, "mine")
	if got := count(t, stream, "orders.new"); got != 81 {
		t.Errorf("%d messages are stored, want 81", got)
	}
	resign(t, tb)
}

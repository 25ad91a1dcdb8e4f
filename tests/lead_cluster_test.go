package tests

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// Leases on a cluster whose stream's leader dies.
const (
	steadyLease = 15 * time.Second // longer than JetStream takes no writes
	quickLease  = 2 * time.Second
	// clusterWrites bounds how long a cluster takes no writes.
	clusterWrites = 30 * time.Second
	// resumes bounds how long after that a suspended term is valid again. A free machine
	// takes less than a quarter of it.
	resumes = 3 * time.Second
)

// leadOn has a node lead the election named as it is, and a second campaign for it.
func leadOn(t *testing.T, urls string, name string, lease time.Duration) (*election.Term, <-chan *election.Term) {
	t.Helper()
	join := func(pid string) *election.Election {
		n, err := fabric.Join(within(t, patience), fabric.Config{Cluster: "t", PID: fabric.PID(pid), URL: urls, Lease: lease, NATS: []nats.Option{nats.DontRandomize()}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
			defer cancel()
			_ = n.Leave(ctx) // a term may be under way
		})
		e, err := election.New(n, election.Config{Name: name, HoldOnSuspend: true})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	term, err := join(name).Campaign(within(t, patience))
	if err != nil {
		t.Fatal(err)
	}
	other := join(name + "-other")
	next := make(chan *election.Term, 1)
	go func() {
		term, err := other.Campaign(t.Context())
		if err == nil {
			next <- term
		}
	}()
	return term, next
}

// awaitStored returns when the bucket takes writes.
func awaitStored(t *testing.T, c *natstest.Cluster) time.Time {
	t.Helper()
	nc := c.Connect()
	defer nc.Close()
	ctx := within(t, clusterWrites)
	for {
		try, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		m, err := nc.RequestWithContext(try, "$KV.fab_t_production.d.probe.x", nil)
		cancel()
		if err == nil && len(m.Data) > 0 && !slices.Contains([]string{"503", "408"}, m.Header.Get("Status")) {
			return time.Now()
		}
		if ctx.Err() != nil {
			t.Fatalf("the bucket takes no writes for %v: %v", clusterWrites, err)
		}
		if errors.Is(err, nats.ErrNoResponders) {
			<-try.Done()
		}
	}
}

// valid waits until the term is valid, or is not, and returns when.
func valid(t *testing.T, term *election.Term, want bool, bound time.Duration) time.Time {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for ctx := within(t, bound); term.Valid() != want; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("valid is %t for %v; the term's context: %v", !want, bound, context.Cause(term.Context()))
		}
	}
	return time.Now()
}

// TestElectionOnAFailingCluster: the leader's server freezes, the stream's leader is
// killed, and the majority is lost. A lease of 15 s notices none of the first two; one
// of 2 s is suspended, and goes on as the same term.
func TestElectionOnAFailingCluster(t *testing.T) {
	t.Parallel()
	c := natstest.StartProcesses(t, 3)
	steady, steadyNext := leadOn(t, c.URL(), "steady", steadyLease)
	quick, quickNext := leadOn(t, c.URL(), "quick", quickLease)

	const frozen = 0 // everybody is connected to the first server
	for c.LeaderOf(bucket) == frozen {
		c.StepDown(bucket)
		awaitStored(t, c)
	}
	if err := steady.Confirm(within(t, steadyLease)); err != nil {
		t.Fatal(err)
	}
	c.Pause(frozen)
	began := time.Now()
	if err := steady.Confirm(within(t, steadyLease)); err != nil {
		t.Errorf("Confirm while the server is frozen: %v", err)
	}
	t.Logf("the server was frozen: the long lease was renewed over another after %v", time.Since(began).Round(time.Millisecond))
	valid(t, quick, true, 2*quickLease)
	c.Resume(frozen)
	c.WaitReady()
	awaitStored(t, c)

	dead := c.LeaderOf(bucket)
	confirmed := time.Now()
	if err := steady.Confirm(within(t, steadyLease)); err != nil {
		t.Fatal(err)
	}
	c.Kill(dead)
	stored := awaitStored(t, c)
	resumed := valid(t, quick, true, 2*quickLease)
	if took := resumed.Sub(stored); took > resumes {
		t.Errorf("the term of a lease of %v is valid %v after the bucket takes writes, want %v", quickLease, took, resumes)
	}
	t.Logf("the stream's leader was killed: the short lease is valid %v after the bucket takes writes", resumed.Sub(stored).Round(time.Millisecond))
	// When the votes of the first round are split, there is no leader for longer than the lease.
	if without := stored.Sub(confirmed); !steady.Valid() && without < steadyLease*2/3 {
		t.Errorf("a lease of %v ran out while the stream had no leader for %v", steadyLease, without)
	}
	c.Start(dead)
	c.WaitReady()
	valid(t, quick, true, 2*quickLease)

	for _, i := range []int{0, 1} {
		c.Kill(i)
	}
	lost := time.Now()
	believed := lost // when it last was, seen from before the look
	for now, ctx := lost, within(t, patience); quick.Valid(); now = time.Now() {
		believed = now
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("a lease is believed in without a majority")
		}
	}
	if took := believed.Sub(lost); took > quickLease {
		t.Errorf("a lease of %v was believed in %v after the majority was lost", quickLease, took)
	}
	select {
	case term := <-quickNext:
		t.Errorf("term %d was begun without a majority", term.Number())
	case term := <-steadyNext:
		t.Errorf("term %d was begun without a majority", term.Number())
	case <-time.After(2 * quickLease):
	}
	for _, i := range []int{0, 1} {
		c.Start(i)
	}
	stored = awaitStored(t, c)
	resumed = valid(t, quick, true, steadyLease)
	if took := resumed.Sub(stored); took > resumes {
		t.Errorf("the term of a lease of %v is valid %v after the bucket takes writes, want %v", quickLease, took, resumes)
	}
	t.Logf("the majority is back: the short lease is valid %v after the bucket takes writes", resumed.Sub(stored).Round(time.Millisecond))
}

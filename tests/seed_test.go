package tests

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// These are the loads that the libraries of the same kind tested themselves with:
// pkhadilkar/cluster ("ClusterTalk"), BurntSushi/cluster and vibhor1403/Raft. Here
// every message must arrive, once and in order, with the default inbox.

func number(i int) fabric.PID { return fabric.PID(strconv.Itoa(i)) }

// encode and decode carry a sequence number.
func encode(i int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(i)) }

func decode(m *fabric.Message) int {
	if len(m.Data) != 8 {
		return -1
	}
	return int(binary.BigEndian.Uint64(m.Data))
}

// expect receives perSender messages from each of so many senders, and returns an
// error unless each comes once and in its sender's order, and nothing else does.
func expect(ctx context.Context, n *fabric.Node, senders, perSender int) error {
	next := map[fabric.PID]int{}
	for range senders * perSender {
		m, err := n.Receive(ctx)
		if err != nil {
			return fmt.Errorf("%s has received %v: %w", n.PID(), next, err)
		}
		if got := decode(m); got != next[m.From] {
			return fmt.Errorf("%s received %d from %s, want %d", n.PID(), got, m.From, next[m.From])
		}
		next[m.From]++
	}
	for from, got := range next {
		if got != perSender {
			return fmt.Errorf("%s received %d from %s, want %d", n.PID(), got, from, perSender)
		}
	}
	return checkStats(n, senders*perSender)
}

// checkStats returns an error if n took in more than it received, or dropped
// anything.
func checkStats(n *fabric.Node, received int) error {
	if s := n.Stats(); s.Received != uint64(received) || s.Rejected != 0 || s.Invalid != 0 || s.Undeliverable != 0 {
		return fmt.Errorf("%s: %+v, want %d received and nothing else", n.PID(), s, received)
	}
	return nil
}

// all runs f for every node at once and fails the test with what they return.
func all(t testing.TB, nodes []*fabric.Node, f func(int, *fabric.Node) error) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		wg.Go(func() { errs[i] = f(i, n) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// report logs, if the test fails, what the nodes counted and what happened to them.
func report(t *testing.T, nodes []*fabric.Node) {
	t.Helper()
	var mu sync.Mutex // guards events
	var events []string
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for _, n := range nodes {
		wg.Go(func() {
			for e, err := range n.Events(ctx) {
				if err == nil {
					mu.Lock()
					events = append(events, fmt.Sprintf("%s: %v (%v)", n.PID(), e.Kind, e.Err))
					mu.Unlock()
				}
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if !t.Failed() {
			return
		}
		t.Log(events)
		for _, n := range nodes {
			t.Logf("%s: %+v", n.PID(), n.Stats())
		}
	})
}

func TestOneWay(t *testing.T) {
	count := 10_000
	if *full {
		count = 1_000_000
	}
	s := natstest.Start(t)
	nodes := joinMany(t, s.URL(), 2)
	ctx := within(t, patience)
	// A sender in one process may be faster than the receiver: it waits now and then
	// for what is beyond the inbox.
	const window = fabric.DefaultInboxMessages / 2
	room := make(chan struct{}, 2) // capacity 2: half windows that may be under way
	began := time.Now()
	all(t, nodes, func(i int, n *fabric.Node) error {
		if i == 0 {
			for i := range count {
				if i%window == 0 {
					room <- struct{}{}
				}
				if err := n.Send(ctx, "1", encode(i)); err != nil {
					return err
				}
			}
			return n.Flush(ctx)
		}
		for i := range count {
			m, err := n.Receive(ctx)
			if err != nil {
				return err
			}
			if got := decode(m); got != i {
				return fmt.Errorf("received %d, want %d", got, i)
			}
			if i%window == window-1 {
				<-room
			}
		}
		return checkStats(n, count)
	})
	t.Logf("%d messages in %v", count, time.Since(began))
}

// TestBroadcast: five nodes broadcast 10 000 messages each and receive 40 000.
func TestBroadcast(t *testing.T) {
	const count, size = 10_000, 5
	s := natstest.Start(t)
	nodes := joinMany(t, s.URL(), size)
	ctx := within(t, patience/3)
	report(t, nodes)
	began := time.Now()
	all(t, nodes, func(_ int, n *fabric.Node) error {
		sent := make(chan error, 1) // capacity 1: read once, by whom started it
		go func() {
			for i := range count {
				if err := n.Broadcast(ctx, encode(i)); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		return errors.Join(expect(ctx, n, size-1, count), <-sent)
	})
	t.Logf("%d deliveries in %v", size*(size-1)*count, time.Since(began))
}

// TestPeers: five servers each send to each other one and broadcast, all at once.
func TestPeers(t *testing.T) {
	const count, size = 2_000, 5
	s := natstest.Start(t)
	nodes := joinMany(t, s.URL(), size)
	ctx := within(t, patience)
	all(t, nodes, func(i int, n *fabric.Node) error {
		sent := make(chan error, 1) // capacity 1: read once, by whom started it
		go func() {
			sent <- func() error {
				for k := range count {
					if k%2 == 1 {
						if err := n.Broadcast(ctx, encode(k)); err != nil {
							return err
						}
						continue
					}
					for j := range nodes {
						if j == i {
							continue
						}
						if err := n.Send(ctx, number(j), encode(k)); err != nil {
							return err
						}
					}
				}
				return n.Flush(ctx)
			}()
		}()
		return errors.Join(expect(ctx, n, size-1, count), <-sent)
	})
}

// TestRing: a thousand nodes, each with a connection of its own, that pass a
// thousand messages on to their neighbour until the first has them back.
func TestRing(t *testing.T) {
	const size, count = 1000, 1000
	s := natstest.Start(t)
	before := memory()
	began := time.Now()
	// A machine that stands still for seconds is no reason for a thousand of one process to
	// take the server for dead, and lose what was under way.
	nodes := joinMany(t, s.URL(), size, func(c *fabric.Config) { c.Lease = 30 * time.Second })
	joined := time.Now()
	all(t, nodes, func(_ int, n *fabric.Node) error {
		_, err := viewOf(within(t, patience), n, members(size))
		return err
	})
	converged := time.Since(joined)
	epoch := uint64(0)
	for _, n := range nodes {
		epoch = max(epoch, n.View().Epoch)
	}
	t.Logf("%d nodes joined in %v, the last has the whole view %v later; %d views; %d MiB",
		size, joined.Sub(began), converged, epoch, (int64(memory())-int64(before))>>20)
	all(t, nodes, func(_ int, n *fabric.Node) error { // there may have been a later one with the same members
		_, err := viewOf(within(t, patience), n, func(v fabric.View) bool { return v.Epoch >= epoch && len(v.Members) == size })
		return err
	})
	// While members come there is a view a second, the roster's ceiling, and one more
	// whenever other programs keep the processors from them for a settle window.
	joining := joined.Sub(began)
	if most := 3 + 2*uint64(joining/time.Second); epoch > most || converged > 5*time.Second+joining {
		t.Errorf("a thousand joins made %d views, want %d at most; the last of them known to all after %v", epoch, most, converged)
	}
	ctx := within(t, 2*patience)
	began = time.Now()
	all(t, nodes, func(i int, n *fabric.Node) error {
		to := number((i + 1) % size)
		if i == 0 {
			for k := range count {
				if err := n.Send(ctx, to, encode(k)); err != nil {
					return err
				}
			}
		}
		for k := range count {
			m, err := n.Receive(ctx)
			if err != nil {
				return fmt.Errorf("%s has %d messages: %w", n.PID(), k, err)
			}
			if got := decode(m); got != k || m.From != number((i+size-1)%size) {
				return fmt.Errorf("%s received %d from %s, want %d", n.PID(), got, m.From, k)
			}
			if i == 0 {
				continue
			}
			if err := n.Send(ctx, to, m.Data); err != nil {
				return err
			}
		}
		return checkStats(n, count)
	})
	took := time.Since(began)
	t.Logf("%d hops in %v, %.0f/s; %d MiB", size*count, took, size*count/took.Seconds(), (int64(memory())-int64(before))>>20)
}

// memory is what the process has from the system, and has not given back.
func memory() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys - m.HeapReleased
}

// TestHelloWorld is the example of BurntSushi/cluster: two nodes, and a broadcast
// as soon as the first knows the second. Nobody had to add anybody.
func TestHelloWorld(t *testing.T) {
	s := natstest.Start(t)
	n1, n2 := join(t, s.URL(), "n1"), join(t, s.URL(), "n2")
	ctx := within(t, patience)
	for c, err := range n1.Changes(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if c.Kind == fabric.Joined && c.Member.PID == "n2" {
			break
		}
	}
	if err := n1.Broadcast(ctx, []byte("Hello, world!")); err != nil {
		t.Fatal(err)
	}
	m, err := n2.Receive(ctx)
	if err != nil || string(m.Data) != "Hello, world!" || m.From != "n1" || m.To != fabric.Everyone {
		t.Errorf("received %+v, %v", m, err)
	}
}

// TestUngracefulDisconnect: a node whose connection is cut is seen to fail by both
// others, within its lease and a little, and to come back when it is healed.
func TestUngracefulDisconnect(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	lease := func(c *fabric.Config) { c.Lease = time.Second }
	link := s.Link()
	a, b := join(t, s.URL(), "a", lease), join(t, s.URL(), "b", lease)
	c := join(t, "", "c", lease, func(c *fabric.Config) {
		c.NATS = append(natstest.FastOptions(), nats.InProcessServer(link))
	})
	for _, n := range []*fabric.Node{a, b, c} {
		awaitView(t, n, members(3))
	}
	changes := make(chan fabric.Change) // of both
	ctx, cancel := context.WithCancel(within(t, patience))
	defer cancel()
	for _, n := range []*fabric.Node{a, b} {
		go func() {
			for ch := range n.Changes(ctx) {
				if ch.Member.PID != "c" {
					continue
				}
				select {
				case changes <- ch:
				case <-ctx.Done():
				}
			}
		}()
	}
	both := func(want fabric.ChangeKind) {
		t.Helper()
		for range 2 {
			select {
			case ch := <-changes:
				if ch.Kind != want {
					t.Errorf("c: %v, want %v", ch.Kind, want)
				}
			case <-ctx.Done():
				t.Fatalf("c: never %v", want)
			}
		}
	}
	both(fabric.Joined)
	began := time.Now()
	link.Cut()
	both(fabric.Failed)
	took := time.Since(began)
	// 1.01 Lease + 0.5 s is the promise; the machine may be busy.
	if took > 4*time.Second {
		t.Errorf("seen to have failed after %v", took)
	}
	t.Logf("seen to have failed after %v, with a lease of 1s", took)
	link.Heal()
	both(fabric.Joined)
	awaitView(t, c, members(3))
}

// Package tests is what no single package can test: loads, server clusters, real
// processes, and the architecture itself. It runs in real time, against real
// servers, on the loopback interface. Sizes beyond a couple of minutes are behind
// the flag -full.
package tests

import (
	"context"
	"flag"
	"sync"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

var full = flag.Bool("full", false, "also run what takes minutes")

// patience bounds every wait for something that normally takes well under a second.
const patience = time.Minute

// within returns a context that ends with the test, and after d at the latest.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// join joins the fabric "t" at url. The node leaves at the end of the test.
func join(t testing.TB, url string, pid fabric.PID, tune ...func(*fabric.Config)) *fabric.Node {
	t.Helper()
	cfg := fabric.Config{Cluster: "t", PID: pid, URL: url}
	for _, f := range tune {
		f(&cfg)
	}
	n, err := fabric.Join(within(t, patience), cfg)
	if err != nil {
		t.Fatalf("join as %s: %v", pid, err)
	}
	t.Cleanup(func() { leave(t, n) })
	return n
}

// leave ends a node, also at the end of a test that has failed.
func leave(t testing.TB, nodes ...*fabric.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := n.Leave(ctx); err != nil && n.Context().Err() == nil {
				t.Errorf("%s leaves: %v", n.PID(), err)
			}
		})
	}
	wg.Wait()
}

// joinMany joins so many nodes at once, named 0, 1, 2...
func joinMany(t testing.TB, url string, count int, tune ...func(*fabric.Config)) []*fabric.Node {
	t.Helper()
	ctx := within(t, patience+time.Duration(count)*100*time.Millisecond) // ten seconds of CPU for a thousand
	nodes := make([]*fabric.Node, count)
	errs := make([]error, count)
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() {
			cfg := fabric.Config{Cluster: "t", PID: number(i), URL: url}
			for _, f := range tune {
				f(&cfg)
			}
			nodes[i], errs[i] = fabric.Join(ctx, cfg)
		})
	}
	wg.Wait()
	joined := nodes[:0:0]
	for _, n := range nodes {
		if n != nil {
			joined = append(joined, n)
		}
	}
	t.Cleanup(func() { leave(t, joined...) })
	for i, err := range errs {
		if err != nil {
			t.Fatalf("join as %d: %v", i, err)
		}
	}
	return nodes
}

// awaitView returns the first view of n that ok accepts.
func awaitView(t testing.TB, n *fabric.Node, ok func(fabric.View) bool) fabric.View {
	t.Helper()
	v, err := viewOf(within(t, patience), n, ok)
	if err != nil {
		t.Fatalf("view of %s has %d members at epoch %d: %v", n.PID(), len(v.Members), v.Epoch, err)
	}
	return v
}

func viewOf(ctx context.Context, n *fabric.Node, ok func(fabric.View) bool) (fabric.View, error) {
	for _, err := range n.Changes(ctx) {
		if v := n.View(); err != nil || ok(v) {
			return v, err
		}
	}
	return n.View(), nil
}

// members accepts a view of so many members.
func members(count int) func(fabric.View) bool {
	return func(v fabric.View) bool { return len(v.Members) == count }
}

package tests

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

// TestRestartOfTheOwnServer restarts the server inside a living process: its members,
// in process and over TCP, are the same as before.
func TestRestartOfTheOwnServer(t *testing.T) {
	srv, err := embedded.Start(within(t, patience), embedded.Config{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Shutdown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	a := join(t, "", "a", func(c *fabric.Config) { c.NATS = []nats.Option{nats.InProcessServer(srv)} })
	b := join(t, srv.ClientURL(), "b")
	awaitView(t, a, members(2))
	awaitView(t, b, members(2))
	incarnations := []uint64{a.Incarnation(), b.Incarnation()}
	for _, n := range []*fabric.Node{a, b} {
		go func() { // ends with the test
			for m, err := range n.Messages(t.Context()) {
				if err != nil {
					return
				}
				_ = m.Reply(t.Context(), nil) // the server may be away
			}
		}()
	}
	for range 3 {
		if err := srv.Restart(within(t, patience)); err != nil {
			t.Fatal(err)
		}
		for _, way := range [][2]*fabric.Node{{a, b}, {b, a}} {
			for ctx := within(t, patience); ; {
				try, cancel := context.WithTimeout(ctx, time.Second)
				_, err := way[0].Request(try, way[1].PID(), nil)
				pauseBriefly(try, err)
				cancel()
				if err == nil {
					break
				}
				if ctx.Err() != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if got := []uint64{a.Incarnation(), b.Incarnation()}; got[0] != incarnations[0] || got[1] != incarnations[1] {
		t.Errorf("incarnations %v, were %v", got, incarnations)
	}
}

// pauseBriefly waits after an error: nothing says when a node is connected again.
func pauseBriefly(ctx context.Context, err error) {
	if err == nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Millisecond):
	}
}

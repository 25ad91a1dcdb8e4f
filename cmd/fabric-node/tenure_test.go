//go:build unix

package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/balance"
)

// newCrew returns a crew of workers that ignore TERM and note that they run in a file
// of dir, INDEX; its share is what the pointer holds.
func newCrew(t *testing.T, dir string, grace time.Duration) (*crew, *atomic.Pointer[balance.Share]) {
	var share atomic.Pointer[balance.Share]
	c := &crew{
		app:   &app{stdout: io.Discard, stderr: io.Discard, told: io.Discard, log: slog.New(slog.DiscardHandler)},
		flags: &workerFlags{onChange: changeRestart, policy: policyAlways, grace: grace},
		argv:  []string{"sh", "-c", `trap "" TERM; : >"` + dir + `/$FABRIC_WORKER_INDEX"; while :; do sleep 0.01; done`},
		env:   os.Environ(), base: context.WithoutCancel(t.Context()), joined: make(chan struct{}),
		ended: make(chan error, 1), alive: map[*child]bool{},
	}
	c.begin(func() balance.Share { return *share.Load() }, func(int) (uint64, error) { return 0, balance.ErrNotStrict })
	t.Cleanup(func() { c.dismiss(func(*worker) bool { return true }) })
	return c, &share
}

// started waits until a worker for each index has said that it runs.
func started(t *testing.T, dir string, indices ...string) {
	t.Helper()
	for _, index := range indices {
		for limit := time.Now().Add(patience); !exists(filepath.Join(dir, index)); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("no worker for index %s", index)
			}
		}
	}
}

// A loss stops all workers within one grace, though the callback waits for another stop,
// and what that callback hires then does not start.
func TestLossDoesNotWaitForEarlierStops(t *testing.T) {
	const grace = 2 * time.Second
	dir := t.TempDir()
	c, share := newCrew(t, dir, grace)
	none := &balance.Share{First: -1, Total: 3}
	two := &balance.Share{First: 0, Workers: 2, Total: 3}
	later := &balance.Share{First: 1, Workers: 2, Total: 3}
	share.Store(two)
	c.change(*two)
	started(t, dir, "0", "1")

	share.Store(later)
	done := make(chan time.Time, 1)
	go func() {
		c.revoke(t.Context(), []int{0})
		c.change(*later)
		c.change(*none)
		done <- time.Now()
	}()
	time.Sleep(grace / 2)
	lost := time.Now()
	share.Store(none)
	c.lose()
	if took := (<-done).Sub(lost); took > grace*7/5 { // one stop after the other takes grace*3/2
		t.Errorf("the workers were stopped %v after the loss, want %v", took, grace)
	}
	if exists(filepath.Join(dir, "2")) {
		t.Error("a worker was started after the loss")
	}
}

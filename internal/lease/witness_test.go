package lease_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A fakeKernel tells of the end of one process, to whom has seen it alive.
type fakeKernel struct {
	mu      sync.Mutex // guards the fields below
	ended   bool
	end     chan struct{} // closed then
	watches int
}

var errNotAlive = errors.New("the process was not seen alive")

func (k *fakeKernel) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ended {
		k.ended = true
		close(k.end)
	}
}

func (k *fakeKernel) awaitExit(ctx context.Context, _ string) error {
	k.mu.Lock()
	k.watches++
	ended := k.ended
	k.mu.Unlock()
	if ended {
		return errNotAlive
	}
	select {
	case <-k.end:
		return nil
	case <-ctx.Done():
		k.kill() // in this moment, of all
		return context.Cause(ctx)
	}
}

// TestWitnessGoesOn: who watches the holder's process does not stop to, and begin again,
// when its place among those who wait changes: in between the process may end.
func TestWitnessGoesOn(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := start(t, s, "a"), start(t, s, "b")
		kernel := &fakeKernel{end: make(chan struct{})}
		b.AwaitExitBy(kernel.awaitExit)
		if _, err := a.Claim("c.e.x").Acquire(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex // guards again
		again := make(chan struct{})
		next := make(chan error, 1)
		go func() {
			_, err := b.Claim("c.e.x").AcquireBy(t.Context(), lease.Policy{Proof: true, Near: func() (bool, <-chan struct{}) {
				mu.Lock()
				defer mu.Unlock()
				return true, again
			}})
			next <- err
		}()
		synctest.Wait()
		for range 3 {
			mu.Lock()
			old := again
			again = make(chan struct{})
			mu.Unlock()
			close(old)
			synctest.Wait()
		}
		a.crash()
		began := time.Now()
		kernel.kill()
		if err := <-next; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("taken %v after the process ended, and that was seen", took)
		}
		if kernel.watches != 1 {
			t.Errorf("%d watches of one process, want 1", kernel.watches)
		}
		b.leave(t)
	})
}

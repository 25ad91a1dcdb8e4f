package lease_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

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

// TestWitnessEndsNobodyElse: a witness that is cut off for a while, between seeing the
// process end and saying so, does not end the next incarnation of the PID, which began
// meanwhile.
func TestWitnessEndsNobodyElse(t *testing.T) {
	for name, cut := range map[string]func(*natstest.Link){"asks late": (*natstest.Link).Cut, "hears late": (*natstest.Link).CutReplies} {
		for late := 50 * time.Millisecond; late < 2*time.Second; late += 200 * time.Millisecond {
			t.Run(name+" "+late.String(), func(t *testing.T) {
				natstest.Bubble(t, func(t *testing.T, s *natstest.Server) { lateWitness(t, s, cut, late, false) })
			})
		}
	}
	for late := 50 * time.Millisecond; late < ttl/4; late += 100 * time.Millisecond { // before it is renewed
		t.Run("the session is removed "+late.String(), func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				lateWitness(t, s, (*natstest.Link).Cut, late, true)
			})
		})
	}
}

func lateWitness(t *testing.T, s *natstest.Server, cut func(*natstest.Link), late time.Duration, remove bool) {
	a, b, c := start(t, s, "a"), start(t, s, "b"), start(t, s, "c")
	if _, err := a.Claim("c.e.x").Acquire(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	kernels := []*fakeKernel{{end: make(chan struct{})}, {end: make(chan struct{})}}
	for i, p := range []*proc{b, c} {
		p.AwaitExitBy(kernels[i].awaitExit)
		wg.Go(func() { p.Claim("c.e.x").AcquireBy(ctx, lease.Policy{Proof: true}) })
	}
	synctest.Wait()
	a.crash()
	cut(b.link)
	kernels[0].kill()
	synctest.Wait()
	kernels[1].kill() // the other one says so at once
	again := start(t, s, "a")
	first, _ := again.State()
	time.Sleep(late)
	if remove { // by a person, or by a server whose clock is wrong; the next renewal mends it
		m := nats.NewMsg("$KV.fab_test_production.s.a")
		m.Header.Set("KV-Operation", "DEL")
		if _, err := c.nc.RequestMsg(m, time.Second); err != nil {
			t.Fatal(err)
		}
	}
	b.link.Heal()
	time.Sleep(2 * ttl)
	if st, _ := again.State(); st.Hold == nil || st.Hold.Incarnation != first.Hold.Incarnation {
		t.Errorf("incarnation %d was ended by who saw the process of the one before end", first.Hold.Incarnation)
	}
	cancel()
	wg.Wait()
	again.leave(t)
	b.leave(t)
	c.leave(t)
}

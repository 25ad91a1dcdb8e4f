package balance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/fabric"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// Defect 1 of libcluster: a passive member counted as workers.
func TestPassiveAddsNoWorkers(t *testing.T) {
	h := newHub()
	a := h.join(t, "a", Config{Workers: 2})
	b := h.join(t, "b", Config{Workers: 5, Passive: true})
	c := h.join(t, "c", Config{})
	for s, want := range map[*seat]Share{a: {First: 0, Workers: 2, Total: 3, Epoch: 3}, b: {First: -1, Workers: 0, Total: 3, Epoch: 3}, c: {First: 2, Workers: 1, Total: 3, Epoch: 3}} {
		if got := s.g.Share(); got != want {
			t.Errorf("%s has %v, want %v", s.want.pid, got, want)
		}
	}
	want := []Placed{{PID: "a", First: 0, Workers: 2, Self: false}, {PID: "b", First: -1, Workers: 0, Self: true}, {PID: "c", First: 2, Workers: 1, Self: false}}
	if got := b.g.Members(); !slices.Equal(got, want) {
		t.Errorf("Members() = %v, want %v", got, want)
	}
	leave(t, a, b, c)
}

// Defect 2 of libcluster: a passive member that left stayed passive for ever.
func TestLeaveResets(t *testing.T) {
	h := newHub()
	leave(t, h.join(t, "a", Config{Passive: true}))
	a := h.join(t, "a", Config{})
	if got, want := a.g.Share(), (Share{First: 0, Workers: 1, Total: 1, Epoch: 3}); got != want {
		t.Errorf("joined again actively: %v, want %v", got, want)
	}
	leave(t, a)
}

// Defects 3 and 11 of libcluster: the callback was given other values than the
// state, and was called under a lock.
func TestOnChangeSeesTheSameShare(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		var a *seat
		var calls []Share
		a = h.join(t, "a", Config{OnChange: func(s Share) {
			if calls = append(calls, s); len(calls) == 1 {
				return // Join has not returned
			}
			if got := a.g.Share(); got != s {
				t.Errorf("OnChange(%v) while Share() = %v", s, got)
			}
			for got := range a.g.Shares(t.Context()) {
				if got != s {
					t.Errorf("OnChange(%v) while Shares gives %v", s, got)
				}
				break
			}
			if got, want := shareIn(a.g.Members(), s.Total, s.Epoch), s; got != want {
				t.Errorf("OnChange(%v) while Members() place it at %v", s, got)
			}
			if err := a.g.SetWorkers(t.Context(), 2); err != nil && s.First >= 0 {
				t.Errorf("SetWorkers in OnChange: %v", err)
			}
		}})
		b := h.join(t, "0", Config{Workers: 3})
		synctest.Wait()
		leave(t, b)
		synctest.Wait()
		leave(t, a)
		want := []Share{{First: 0, Workers: 1, Total: 1, Epoch: 1}, {First: 3, Workers: 1, Total: 4, Epoch: 2}, {First: 0, Workers: 2, Total: 2, Epoch: 3}, {First: -1, Workers: 0, Total: 0, Epoch: 3}}
		if !slices.Equal(calls, want) {
			t.Errorf("OnChange had %v, want %v", calls, want)
		}
	})
}

// Defect 4 of libcluster: the state showed the workers asked for beside the index
// and total of before, so that ranges overlapped.
func TestShareCarriesGrantedWorkers(t *testing.T) {
	h := newHub()
	a, b := h.join(t, "a", Config{}), h.join(t, "b", Config{})
	if err := a.g.SetWorkers(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	if got, want := a.g.Share(), (Share{First: 0, Workers: 1, Total: 2, Epoch: 2}); got != want {
		t.Errorf("before the next view, Share() = %v, want %v", got, want)
	}
	h.publish()
	if got, want := a.g.Share(), (Share{First: 0, Workers: 4, Total: 5, Epoch: 3}); got != want {
		t.Errorf("after the next view, Share() = %v, want %v", got, want)
	}
	if got, want := b.g.Share(), (Share{First: 4, Workers: 1, Total: 5, Epoch: 3}); got != want {
		t.Errorf("after the next view, the neighbour has %v, want %v", got, want)
	}
	for _, n := range []int{-1, MaxWorkers + 1} {
		if err := a.g.SetWorkers(t.Context(), n); !errors.Is(err, ErrConfig) {
			t.Errorf("SetWorkers(%d) = %v, want ErrConfig", n, err)
		}
	}
	if err := a.g.SetWorkers(t.Context(), 0); err != nil || a.want.workers != 1 {
		t.Errorf("SetWorkers(0) = %v and asks for %d, want 1", err, a.want.workers)
	}
	leave(t, a, b)
}

// Defect 5 of libcluster: a change woke nobody; it was seen when a timer fired.
func TestViewIsSeenAtOnce(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		start := time.Now()
		var last Share
		a := h.join(t, "a", Config{OnChange: func(s Share) {
			if last = s; time.Since(start) > 0 {
				t.Errorf("OnChange(%v) after %v", s, time.Since(start))
			}
		}})
		if err := a.g.SetWorkers(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		h.publish()
		synctest.Wait()
		if want := (Share{First: 0, Workers: 3, Total: 3, Epoch: 2}); last != want {
			t.Errorf("OnChange had %v last, want %v", last, want)
		}
		leave(t, a)
	})
}

// Defect 6 of libcluster: a member whose entry had lapsed went on with its index
// and never joined again.
func TestLossAndRejoin(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		var calls []Share
		a := h.join(t, "a", Config{OnChange: record(&calls)})
		b := h.join(t, "b", Config{Workers: 2})
		synctest.Wait()

		a.g.lose()
		a.g.lose()
		if got, want := a.g.Share(), (Share{First: -1, Workers: 0, Total: 2, Epoch: 2}); got != want {
			t.Errorf("without a lease, Share() = %v, want %v", got, want)
		}
		if got := len(a.g.Members()); got != 1 {
			t.Errorf("without a lease, %d Members, want the other one", got)
		}
		synctest.Wait()
		h.remove(a)
		h.publish()
		h.epoch = 0 // the bucket was lost as well
		h.add(a)
		h.publish()
		synctest.Wait()
		if err := a.g.Context().Err(); err != nil {
			t.Errorf("the loss ended Context: %v", err)
		}
		leave(t, b)
		synctest.Wait()
		leave(t, a)
		want := []Share{{First: 0, Workers: 1, Total: 1, Epoch: 1}, {First: 0, Workers: 1, Total: 3, Epoch: 2}, {First: -1, Workers: 0, Total: 2, Epoch: 2}, {First: 0, Workers: 1, Total: 3, Epoch: 1}, {First: 0, Workers: 1, Total: 1, Epoch: 2}, {First: -1, Workers: 0, Total: 0, Epoch: 2}}
		if !slices.Equal(calls, want) {
			t.Errorf("OnChange had %v, want %v", calls, want)
		}
	})
}

// Defect 7 of libcluster: changes between a read and the next wait were missed.
func TestNoFinalStateIsMissed(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		var calls []Share
		m := h.join(t, "m", Config{OnChange: record(&calls)})
		const epochs = 400
		var readers sync.WaitGroup
		for range 3 {
			readers.Go(func() { readUntil(t, m.g, epochs) })
		}
		b := h.seat(t, "b", Config{})
		h.add(b)
		for epoch := 2; epoch <= epochs; epoch++ {
			if err := b.setWorkers(t.Context(), epoch); err != nil {
				t.Fatal(err)
			}
			h.publish()
		}
		readers.Wait()
		synctest.Wait()
		leave(t, m)
		want := []Share{{First: epochs, Workers: 1, Total: epochs + 1, Epoch: epochs}, {First: -1, Workers: 0, Total: epochs, Epoch: epochs}}
		if last := calls[max(0, len(calls)-2):]; !slices.Equal(last, want) {
			t.Errorf("OnChange had %v last, want %v", last, want)
		}
		h.checkCalls(t, "m", calls)
	})
}

// readUntil reads the group's shares until the view epoch.
func readUntil(t *testing.T, g *Group, epoch uint64) {
	var last Share
	for s, err := range g.Shares(t.Context()) {
		if err != nil {
			t.Errorf("Shares: %v after %v", err, last)
			return
		}
		if s.Epoch <= last.Epoch {
			t.Errorf("Shares: %v after %v", s, last)
		}
		if last = s; s.Epoch == epoch {
			return
		}
	}
}

// Defect 8 of libcluster: a member that lost its watch kept its old index.
func TestExpelledByAView(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		var calls []Share
		s := newHub().seat(t, "a", Config{OnChange: record(&calls)})
		others := []Placed{{PID: "b", First: 0, Workers: 1}}
		s.g.deliver(shareIn(others, 1, 1), others) // not placed yet
		s.g.deliver(Share{First: 1, Workers: 1, Total: 2, Epoch: 2}, append(others, Placed{PID: "a", First: 1, Workers: 1, Self: true}))
		if err := s.g.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for epoch := uint64(3); epoch < 6; epoch++ {
			s.g.deliver(shareIn(others, int(epoch), epoch), others)
			synctest.Wait()
		}
		if got, want := s.g.Share(), (Share{First: -1, Workers: 0, Total: 3, Epoch: 3}); got != want {
			t.Errorf("expelled, Share() = %v, want %v", got, want)
		}
		s.g.deliver(Share{First: 0, Workers: 1, Total: 1, Epoch: 6}, nil)
		synctest.Wait()
		s.g.deliver(shareIn(others, 1, 7), others)
		leave(t, s)
		want := []Share{{First: 1, Workers: 1, Total: 2, Epoch: 2}, {First: -1, Workers: 0, Total: 3, Epoch: 3}, {First: 0, Workers: 1, Total: 1, Epoch: 6}, {First: -1, Workers: 0, Total: 1, Epoch: 7}}
		if !slices.Equal(calls, want) {
			t.Errorf("OnChange had %v, want %v", calls, want)
		}
	})
}

// Defect 9 of libcluster: two members under one id both went on with one index.
func TestNodeEnds(t *testing.T) {
	for _, cause := range []error{fabric.ErrLost, fabric.ErrClosed, &fabric.PIDInUseError{PID: "a"}} {
		natstest.FakeTime(t, func(t *testing.T) {
			h := newHub()
			var calls []Share
			a := h.join(t, "a", Config{OnChange: record(&calls)})
			a.g.end(fmt.Errorf("node ended: %w", cause))
			a.g.end(ErrClosed) // too late to be the cause
			h.publish()
			a.g.lose()
			if got, want := a.g.Share(), (Share{First: -1, Workers: 0, Total: 0, Epoch: 1}); got != want {
				t.Errorf("ended, Share() = %v, want %v", got, want)
			}
			if got := context.Cause(a.g.Context()); !errors.Is(got, cause) {
				t.Errorf("Context ended with %v, want %v", got, cause)
			}
			if err := a.g.SetWorkers(t.Context(), 2); !errors.Is(err, cause) {
				t.Errorf("SetWorkers = %v, want %v", err, cause)
			}
			var last error
			for s, err := range a.g.Shares(t.Context()) {
				if last = err; s.First >= 0 {
					t.Errorf("Shares gave %v after the end", s)
				}
			}
			if !errors.Is(last, cause) {
				t.Errorf("Shares ended with %v, want %v", last, cause)
			}
			leave(t, a, a)
			if want := []Share{{First: 0, Workers: 1, Total: 1, Epoch: 1}, {First: -1, Workers: 0, Total: 0, Epoch: 1}}; !slices.Equal(calls, want) {
				t.Errorf("OnChange had %v, want %v", calls, want)
			}
		})
	}
}

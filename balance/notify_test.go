package balance

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

func TestOnChangeNewestWins(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		var calls []Share
		release := make(chan struct{})
		a := h.join(t, "a", Config{OnChange: func(s Share) {
			if calls = append(calls, s); len(calls) == 2 {
				<-release
			}
		}})
		for n := 2; n <= 100; n++ {
			a.want.workers = n
			h.publish()
			synctest.Wait()
		}
		close(release)
		synctest.Wait()
		if want := []Share{{First: 0, Workers: 1, Total: 1, Epoch: 1}, {First: 0, Workers: 2, Total: 2, Epoch: 2}, {First: 0, Workers: 100, Total: 100, Epoch: 100}}; !slices.Equal(calls, want) {
			t.Errorf("OnChange had %v, want %v", calls, want)
		}
		leave(t, a)
	})
}

// A loss is shown even if the index was found again while a call was running.
func TestOnChangeNeverSkipsALoss(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		var calls []Share
		release := make(chan struct{})
		a := h.join(t, "a", Config{OnChange: func(s Share) {
			if calls = append(calls, s); len(calls) == 2 {
				<-release
			}
		}})
		a.want.workers = 2
		h.publish()
		synctest.Wait()
		for range 3 {
			a.g.lose()
			h.publish()
			synctest.Wait()
		}
		close(release)
		synctest.Wait()
		leave(t, a)
		want := []Share{{First: 0, Workers: 1, Total: 1, Epoch: 1}, {First: 0, Workers: 2, Total: 2, Epoch: 2}, {First: -1, Workers: 0, Total: 0, Epoch: 4}, {First: 0, Workers: 2, Total: 2, Epoch: 5}, {First: -1, Workers: 0, Total: 0, Epoch: 5}}
		if !slices.Equal(calls, want) {
			t.Errorf("OnChange had %v, want %v", calls, want)
		}
	})
}

func TestEpochAloneIsNoChange(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		var calls, shares []Share
		a := h.join(t, "a", Config{OnChange: record(&calls)})
		var loop sync.WaitGroup
		loop.Go(func() {
			for s, err := range a.g.Shares(t.Context()) {
				if err != nil {
					return
				}
				shares = append(shares, s)
			}
		})
		for range 2 {
			synctest.Wait()
			h.publish()
		}
		synctest.Wait()
		a.g.deliver(Share{First: 5, Workers: 5, Total: 10, Epoch: 2}, nil) // an old view, late
		a.g.deliver(Share{First: 5, Workers: 5, Total: 10, Epoch: 3}, nil) // one that is known
		leave(t, a)
		loop.Wait()
		if want := []Share{{First: 0, Workers: 1, Total: 1, Epoch: 1}, {First: -1, Workers: 0, Total: 0, Epoch: 3}}; !slices.Equal(calls, want) {
			t.Errorf("OnChange had %v, want %v", calls, want)
		}
		if want := []Share{{First: 0, Workers: 1, Total: 1, Epoch: 1}, {First: 0, Workers: 1, Total: 1, Epoch: 2}, {First: 0, Workers: 1, Total: 1, Epoch: 3}, {First: -1, Workers: 0, Total: 0, Epoch: 3}}; !slices.Equal(shares, want) {
			t.Errorf("Shares gave %v, want %v", shares, want)
		}
	})
}

func TestSharesEndsWithItsContext(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		a := h.join(t, "a", Config{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var got []error
		for _, err := range a.g.Shares(ctx) {
			got = append(got, err)
		}
		if len(got) != 2 || got[0] != nil || !errors.Is(got[1], context.DeadlineExceeded) {
			t.Errorf("Shares gave the errors %v, want nil and the context's", got)
		}
		leave(t, a)
	})
}

func TestStartEndsWithoutAShare(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		cfg := Config{OnChange: func(s Share) { t.Errorf("OnChange(%v)", s) }}
		a := newHub().seat(t, "a", cfg)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.g.start(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("start without a view: %v, want the context's error", err)
		}
		b := newHub().seat(t, "b", cfg)
		b.g.deliver(Share{First: 0, Workers: 1, Total: 1, Epoch: 1}, nil)
		b.g.end(errors.New("node ended"))
		if err := b.g.start(t.Context()); err == nil || err.Error() != "node ended" {
			t.Errorf("start of an ended group: %v, want its cause", err)
		}
		leave(t, a, b)
		if got := context.Cause(a.g.Context()); got != ErrClosed {
			t.Errorf("Context ended with %v, want ErrClosed", got)
		}
	})
}

func TestLeaveWaitsForOnChange(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		var calls []Share
		working := false // the work of the share, under the race detector
		a := h.join(t, "a", Config{OnChange: func(s Share) {
			calls = append(calls, s)
			if working = s.First >= 0; !working {
				time.Sleep(time.Second)
			}
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := a.g.Leave(ctx); !errors.Is(err, context.DeadlineExceeded) || a.leaves != 0 {
			t.Errorf("Leave during OnChange = %v after %d withdrawals, want the context's error, 0", err, a.leaves)
		}
		if a.g.Share().First >= 0 || a.g.Context().Err() == nil {
			t.Errorf("leaving, Share() = %v, Context is %v", a.g.Share(), a.g.Context().Err())
		}
		start := time.Now()
		leave(t, a)
		if got := time.Since(start); got != 900*time.Millisecond || working || a.leaves != 1 {
			t.Errorf("Leave took %v, working %v, %d withdrawals; want 900ms, false, 1", got, working, a.leaves)
		}
		if len(calls) != 2 {
			t.Errorf("OnChange had %v, want two calls", calls)
		}
	})
}

func TestLeaveInsideOnChange(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		var a, b *seat
		var inside, other error
		a = h.join(t, "a", Config{OnChange: func(s Share) {
			if s.Total == 2 {
				inside = a.g.Leave(t.Context())
				other = b.g.Leave(t.Context())
			}
		}})
		b = h.seat(t, "b", Config{OnChange: func(Share) {}})
		h.add(b)
		b.g.deliver(Share{First: 1, Workers: 1, Total: 2, Epoch: 2}, nil)
		if err := b.g.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.publish()
		synctest.Wait()
		if inside != ErrInCallback || a.g.Context().Err() != nil {
			t.Errorf("Leave inside OnChange = %v, Context %v; want ErrInCallback and nothing done", inside, a.g.Context().Err())
		}
		if other != nil || b.g.Context().Err() == nil {
			t.Errorf("Leave of another group inside OnChange = %v, want nil", other)
		}
		leave(t, a, b)
	})
}

func TestLeaveIsIdempotent(t *testing.T) {
	natstest.FakeTime(t, func(t *testing.T) {
		h := newHub()
		refused := errors.New("no server")
		var calls []Share
		a := h.join(t, "a", Config{OnChange: record(&calls)})
		a.leaveErrs = []error{refused}
		if err := a.g.Leave(t.Context()); !errors.Is(err, refused) {
			t.Errorf("Leave = %v, want %v", err, refused)
		}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { leave(t, a) })
		}
		all.Wait()
		if a.leaves != 2 {
			t.Errorf("%d withdrawals, want 2", a.leaves)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.g.Leave(ctx); err != nil {
			t.Errorf("Leave after Leave = %v", err)
		}
		if want := []Share{{First: 0, Workers: 1, Total: 1, Epoch: 1}, {First: -1, Workers: 0, Total: 0, Epoch: 1}}; !slices.Equal(calls, want) {
			t.Errorf("OnChange had %v, want %v", calls, want)
		}
	})
}

// Whatever happens and however late a reader looks: it sees the newest state in the
// end, each loss of an index it was shown, nothing twice, and never two shares without an
// index in a row, unless another view lies between them and the group has not ended.
func TestCursor(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		s := newHub().seat(t, "a", Config{})
		var c cursor
		var shown []Share
		var epoch uint64
		ended := false
		look := func() {
			for {
				before := c.losses
				share, ok := c.next(s.g.state.Load())
				if !ok {
					break
				}
				if n := len(shown); n > 0 && (share == shown[n-1] && before == c.losses || share.First < 0 && shown[n-1].First < 0 && (ended || share.Epoch <= shown[n-1].Epoch)) {
					t.Fatalf("seed %d: %v was shown after %v", seed, share, shown[n-1])
				} else if n > 0 && before != c.losses && shown[n-1].First >= 0 && share.First >= 0 {
					t.Fatalf("seed %d: the loss between %v and %v was not shown", seed, shown[n-1], share)
				}
				shown = append(shown, share)
			}
			if st := s.g.state.Load(); st.begun && (c.shown.First != st.share.First || c.shown != st.share && !ended) {
				t.Fatalf("seed %d: up to date with %v, but Share() = %v", seed, c.shown, st.share)
			}
		}
		for range 30 {
			switch epoch++; rnd.IntN(6) {
			case 0, 1:
				s.g.deliver(Share{First: rnd.IntN(2), Workers: 1, Total: 2, Epoch: epoch}, nil)
			case 2:
				s.g.deliver(Share{First: -1, Workers: 0, Total: 2, Epoch: epoch}, nil)
			case 3:
				s.g.lose()
			case 4:
				s.g.accept(delivery{share: Share{First: -1, Total: rnd.IntN(3), Epoch: epoch}, stands: true})
			case 5:
				look()
			}
		}
		s.g.end(ErrClosed)
		ended = true
		look()
		if n := len(shown); n > 0 && shown[n-1].First >= 0 {
			t.Fatalf("seed %d: the last share shown is %v after %d losses", seed, shown[n-1], s.g.state.Load().losses)
		}
	}
}

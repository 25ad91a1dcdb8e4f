package fabric_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

const stallSize = 5 << 20

// begin has a send a large message to b, of which only the first parts come, and returns
// what becomes of it.
func begin(t *testing.T, ctx context.Context, a, b *fabric.Node, la *natstest.Link, mode fabric.Mode) <-chan error {
	t.Helper()
	la.CutReplies() // a has the first grant and hears of no other
	outcome := make(chan error, 1)
	go func() {
		outcome <- a.SendMsg(ctx, &fabric.Message{To: b.PID(), Mode: mode, Data: make([]byte, stallSize)})
	}()
	for b.Stats().Assembling != stallSize {
		time.Sleep(time.Millisecond) // in fake time
	}
	la.Cut()
	return outcome
}

func isFree(b *fabric.Node) bool { return b.Stats().Assembling == 0 }

// TestLargeStalls: of a sender that is cut off in the middle of a large message for
// longer than the parts are kept, the memory is given back, and it learns that the
// message may be lost. What it sends after that arrives.
func TestLargeStalls(t *testing.T) {
	for _, mode := range []fabric.Mode{fabric.Reliable, fabric.Acked} {
		t.Run(mode.String(), func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				long := func(c *fabric.Config) { c.Lease = 5 * time.Minute }
				b := join(t, s, "b", long)
				a, la := joinLink(t, s, "a", long)
				await(t, a, "a", "b")
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
				defer cancel()
				outcome := begin(t, ctx, a, b, la, mode)
				began := time.Now()
				for !isFree(b) && time.Since(began) < time.Minute {
					time.Sleep(time.Second)
				}
				if got := time.Since(began); got < 30*time.Second || got > 40*time.Second {
					t.Errorf("the memory was given back after %v, want 30 to 40 s", got)
				}
				la.Heal()
				err := <-outcome
				if err == nil && mode == fabric.Reliable { // it was all on its way
					err = a.Flush(ctx)
				}
				if !errors.Is(err, fabric.ErrUnknownOutcome) {
					t.Errorf("the send: %v, want ErrUnknownOutcome", err)
				}
				want := bytes.Repeat([]byte("x"), stallSize)
				if err := a.SendMsg(ctx, &fabric.Message{To: "b", Mode: mode, Data: want}); err != nil {
					t.Fatal(err)
				}
				if m, err := b.Receive(ctx); err != nil || !bytes.Equal(m.Data, want) {
					t.Errorf("the next message did not come: %v", err)
				}
				synctest.Wait()
				if !isFree(b) {
					t.Errorf("%d bytes are kept", b.Stats().Assembling)
				}
			})
		})
	}
}

// TestLargeCutOff: a shorter time does no harm.
func TestLargeCutOff(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		long := func(c *fabric.Config) { c.Lease = 5 * time.Minute }
		b := join(t, s, "b", long)
		a, la := joinLink(t, s, "a", long)
		await(t, a, "a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		outcome := begin(t, ctx, a, b, la, fabric.Reliable)
		time.Sleep(20 * time.Second)
		la.Heal()
		if err := errors.Join(<-outcome, a.Flush(ctx)); err != nil {
			t.Error(err)
		}
		if m, err := b.Receive(ctx); err != nil || len(m.Data) != stallSize {
			t.Errorf("the message did not come: %v", err)
		}
	})
}

// TestLargeSenderFails: when the sender is known to be gone, the memory is given back
// sooner.
func TestLargeSenderFails(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		brief := func(c *fabric.Config) { c.Lease = time.Second }
		b := join(t, s, "b", brief)
		a, la := joinLink(t, s, "a", brief)
		await(t, b, "a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin(t, ctx, a, b, la, fabric.Reliable)
		began := time.Now()
		await(t, b, "b")
		for !isFree(b) && time.Since(began) < time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		if got := time.Since(began); got > 12*time.Second {
			t.Errorf("the memory was given back after %v, want at most 12 s", got)
		}
		// The links of others are not touched.
		c := join(t, s, "c", brief)
		await(t, c, "b", "c")
		for i := range 3 {
			if err := c.SendMsg(ctx, &fabric.Message{To: "b", Mode: fabric.Reliable, Data: fmt.Append(nil, i)}); err != nil {
				t.Fatal(err)
			}
			if m, err := b.Receive(ctx); err != nil || string(m.Data) != fmt.Sprint(i) {
				t.Errorf("message %d: %v", i, err)
			}
			time.Sleep(15 * time.Second)
		}
	})
}

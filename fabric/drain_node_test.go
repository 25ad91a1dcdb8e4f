package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestDrain: what was sent arrives and what came is handled, a broken connection
// notwithstanding.
func TestDrain(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a", func(c *fabric.Config) { c.Offline.TTL = time.Minute })
		b := join(t, s, "b")
		await(t, a, "a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var atA, atB atomic.Int64
		slow := func(n *atomic.Int64) func(context.Context, *fabric.Message) ([]byte, error) {
			return func(context.Context, *fabric.Message) ([]byte, error) {
				time.Sleep(10 * time.Millisecond) // in fake time
				n.Add(1)
				return nil, nil
			}
		}
		go func() { _ = a.Handle(t.Context(), 2, slow(&atA)) }()
		go func() { _ = b.Handle(t.Context(), 2, slow(&atB)) }()
		for i := range 50 {
			if err := b.Send(ctx, "a", fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		for a.Stats().Received < 50 {
			time.Sleep(time.Millisecond) // in fake time
		}
		down := make(chan struct{})
		go func() {
			for e := range a.Events(ctx) {
				if e.Kind == fabric.Disconnected {
					close(down)
					return
				}
			}
		}()
		synctest.Wait()
		la.Kill()
		<-down // what nats.go has taken before is lost with the connection
		for i := range 100 {
			mode := fabric.Fast
			if i%2 == 0 {
				mode = fabric.Reliable
			}
			if err := a.SendMsg(ctx, &fabric.Message{To: "b", Mode: mode}); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		if err := a.Drain(ctx); err != nil {
			t.Errorf("Drain: %v", err)
		}
		if err := a.Send(ctx, "b", nil); !errors.Is(err, fabric.ErrDraining) && !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("Send after Drain: %v", err)
		}
		if n := atA.Load(); n != 50 {
			t.Errorf("%d of 50 that came were handled", n)
		}
		for range 1000 {
			if atB.Load() == 100 {
				return
			}
			time.Sleep(10 * time.Millisecond) // in fake time
		}
		t.Errorf("%d of 100 that were sent arrived", atB.Load())
	})
}

// TestDrainEnds: what cannot be waited for is counted.
func TestDrainEnds(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a", func(c *fabric.Config) { c.Offline.TTL = time.Minute })
		b := join(t, s, "b")
		await(t, a, "a", "b")
		if err := b.Send(t.Context(), "a", nil); err != nil {
			t.Fatal(err)
		}
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for a.Stats().Received < 1 {
			time.Sleep(time.Millisecond) // in fake time
		}
		la.Cut()
		for range 3 {
			if err := a.SendMsg(t.Context(), &fabric.Message{To: "b", Mode: fabric.Reliable}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		err := a.Drain(ctx)
		e, ok := errors.AsType[*fabric.DrainError](err)
		if !ok || e.Unacknowledged != 3 || e.Unhandled != 1 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Drain = %v", err)
		}
		la.Heal()
	})
}

// TestFlushBroken: a Flush whose connection breaks does not wait for what was lost with
// it, and says that it does not know. A Drain goes on with the next connection, and says
// so as well.
func TestFlushBroken(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		b := join(t, s, "b")
		await(t, a, "a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		began := time.Now()
		err := interrupted(t, a, b, la, func() error { return a.Flush(ctx) })
		unknown(t, "Flush", err)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("Flush took %v", took)
		}
		if err := a.Flush(ctx); err != nil {
			t.Errorf("the next Flush: %v", err)
		}
		began = time.Now()
		err = interrupted(t, a, b, la, func() error { return a.Drain(ctx) })
		unknown(t, "Drain", err)
		if _, ok := errors.AsType[*fabric.DrainError](err); !ok {
			t.Errorf("Drain: %v, want a DrainError", err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("Drain took %v", took)
		}
		await(t, b, "b") // it has left all the same
	})
}

// unknown checks that err says that what was sent may be lost.
func unknown(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, fabric.ErrUnknownOutcome) || !errors.Is(err, fabric.ErrDisconnected) {
		t.Errorf("%s: %v, want ErrUnknownOutcome and ErrDisconnected", what, err)
	}
}

// TestFlushAfterBreak: what was lost with a connection is said once, by whoever asks first
// on the next one. What was flushed before, and what is sent after, is not doubted.
func TestFlushAfterBreak(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		b := join(t, s, "b")
		await(t, a, "a", "b")
		ctx := within(t, 10*time.Minute)
		// broken has f run while the connection loses all, and returns with the next.
		broken := func(f func()) {
			t.Helper()
			back := make(chan struct{})
			go func() {
				defer close(back)
				for e := range a.Events(ctx) {
					if e.Kind == fabric.Reconnected {
						return
					}
				}
			}()
			synctest.Wait()
			la.Cut()
			f()
			synctest.Wait()
			la.Kill() // what was on its way is gone
			la.Heal()
			<-back
			synctest.Wait()
		}
		send := func() {
			t.Helper()
			if err := a.Send(ctx, "b", []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		flushed := func() {
			t.Helper()
			if err := a.Flush(ctx); err != nil {
				t.Errorf("Flush: %v", err)
			}
		}
		broken(func() {})
		flushed() // nothing was sent
		send()
		flushed()
		broken(func() {})
		send()
		flushed() // it was sent on the new one
		broken(send)
		send()
		unknown(t, "Flush", a.Flush(ctx))
		flushed()
		broken(func() {
			if err := a.SendMsg(ctx, &fabric.Message{To: "b", Mode: fabric.Reliable}); err != nil {
				t.Fatal(err)
			}
		})
		flushed() // it was sent again
		for range 4 {
			next(t, b)
		}
		quiet(t, b, time.Second)
		broken(send)
		unknown(t, "Drain", a.Drain(ctx))
	})
}

// interrupted has a send a message to b and then wait, while the answers of its connection
// are held back, and the connection is broken after a second.
func interrupted(t *testing.T, a, b *fabric.Node, la *natstest.Link, wait func() error) error {
	t.Helper()
	la.CutReplies()
	if err := a.Send(t.Context(), b.PID(), nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- wait() }()
	time.Sleep(time.Second) // in fake time
	la.Kill()
	la.Heal()
	return <-done
}

// TestDrainMail: what a mailbox has fetched is waited for, until Done; nothing more is
// fetched meanwhile, however much comes, and the next process gets it.
func TestDrainMail(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		const before, after = 40, 60
		a := join(t, s, "a")
		b := join(t, s, "b", mailbox, func(c *fabric.Config) { c.Inbox.Messages = 10 })
		await(t, a, "a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for i := range before {
			mustPost(t, a, "b", fmt.Sprint(i))
		}
		first := next(t, b) // taken, and not done while Drain begins
		synctest.Wait()     // the others are fetched
		drained := make(chan error, 1)
		go func() { drained <- b.Drain(ctx) }()
		time.Sleep(2 * time.Second) // in fake time: it waits
		for i := range after {
			mustPost(t, a, "b", fmt.Sprint(before+i))
		}
		handled := 1
		for {
			m, err := b.Receive(ctx)
			if err != nil {
				break
			}
			time.Sleep(10 * time.Millisecond) // in fake time
			if handled == before-1 {
				done(t, first, nil) // the last but one
			}
			done(t, m, nil)
			handled++
		}
		if err := <-drained; err != nil {
			t.Errorf("Drain: %v", err)
		}
		if handled != before {
			t.Errorf("%d messages were handled before it was over, want the %d that had come", handled, before)
		}
		b = join(t, s, "b", mailbox)
		for i := range after {
			m := next(t, b)
			if want := fmt.Sprint(before + i); string(m.Data) != want || m.Attempt() != 1 {
				t.Fatalf("received %q, attempt %d, want %q", m.Data, m.Attempt(), want)
			}
			done(t, m, nil)
		}
	})
}

// TestDrainMailEnds: mail in hand that is not done is counted, in the inbox or taken, and
// what is done or failed is not.
func TestDrainMailEnds(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		b := join(t, s, "b", mailbox)
		await(t, a, "a", "b")
		for i := range 7 {
			mustPost(t, a, "b", fmt.Sprint(i))
		}
		done(t, next(t, b), nil)
		done(t, next(t, b), errors.New("not now"))
		next(t, b) // 4 stay in the inbox
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		err := b.Drain(ctx)
		if e, ok := errors.AsType[*fabric.DrainError](err); !ok || e.Unhandled != 5 {
			t.Errorf("Drain = %v, want 5 that are not handled", err)
		}
		awaitWaiting(t, a, "b", 6)
	})
}

// TestReliableNewLife: a message to a process that was replaced while nothing was under
// way goes to the new one.
func TestReliableNewLife(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for range 3 {
			b := join(t, s, "b")
			await(t, a, "a", "b")
			for range 2 {
				if err := a.SendMsg(ctx, &fabric.Message{To: "b", Mode: fabric.Reliable}); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if _, err := b.Receive(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if err := a.Flush(ctx); err != nil {
				t.Errorf("Flush: %v", err)
			}
			if err := b.Leave(ctx); err != nil {
				t.Fatal(err)
			}
			await(t, a, "a")
		}
	})
}

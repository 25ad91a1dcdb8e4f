package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// window is what a link to a node may carry whose inbox holds less.
const window = 256

// blocked joins a and b, and has a send to b, in mode Reliable, until a message waits for
// room, whose error is sent.
func blocked(t *testing.T, s *natstest.Server) (a, b *fabric.Node, lb *natstest.Link, result <-chan error) {
	t.Helper()
	a = join(t, s, "a", small)
	b, lb = joinLink(t, s, "b", small)
	await(t, a, "a", "b")
	for i := range window {
		if err := a.SendMsg(t.Context(), &fabric.Message{To: "b", Mode: fabric.Reliable, Data: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Flush(t.Context()); err != nil { // all is acknowledged, and nothing taken
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	go func() {
		waits <- a.SendMsg(t.Context(), &fabric.Message{To: "b", Mode: fabric.Reliable, Data: fmt.Append(nil, window)})
	}()
	select {
	case err := <-waits:
		t.Fatalf("the window is not full: %v", err)
	case <-time.After(time.Minute):
	}
	return a, b, lb, waits
}

func small(c *fabric.Config) { c.Inbox.Messages, c.Lease = 100, 5*time.Second }

// TestBlockedSendAfterALostGrant: who waits for room learns of it although the receiver
// was away when it said so.
func TestBlockedSendAfterALostGrant(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		_, b, lb, waits := blocked(t, s)
		lb.Cut()
		lb.Kill()
		for i := range window {
			if m, err := b.Receive(t.Context()); err != nil || string(m.Data) != fmt.Sprint(i) {
				t.Fatalf("message %d: %v, %v", i, m, err)
			}
		}
		lb.Heal()
		select {
		case err := <-waits:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the sender still waits for room, which there is")
		}
		if m, err := b.Receive(t.Context()); err != nil || string(m.Data) != fmt.Sprint(window) {
			t.Errorf("the last message: %v, %v", m, err)
		}
	})
}

// TestBlockedSendToTheDead: who waits for room that cannot be any more is told.
func TestBlockedSendToTheDead(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		_, _, lb, waits := blocked(t, s)
		lb.Cut()
		lb.Kill()
		select {
		case err := <-waits:
			if !errors.Is(err, fabric.ErrNoPeer) {
				t.Errorf("got %v, want ErrNoPeer", err)
			}
		case <-time.After(time.Minute):
			t.Error("the sender still waits for one who is dead")
		}
	})
}

// TestBlockedSendOutlivesTheReceiver: who waits for a receiver that lapses and is back
// goes on, whoever else sends meanwhile.
func TestBlockedSendOutlivesTheReceiver(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b, lb, waits := blocked(t, s)
		lb.Cut()
		await(t, a, "a")
		lb.Heal()
		await(t, a, "a", "b") // the same process, under another incarnation
		others := make(chan error, 1)
		go func() {
			others <- a.SendMsg(t.Context(), &fabric.Message{To: "b", Mode: fabric.Reliable, Data: fmt.Append(nil, window)})
		}()
		time.Sleep(time.Second)
		for range window {
			if _, err := b.Receive(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			select {
			case err := <-waits:
				if err != nil && !errors.Is(err, fabric.ErrNoPeer) { // it was not there for a while
					t.Error(err)
				}
				waits = nil
			case err := <-others:
				if err != nil {
					t.Error(err)
				}
				others = nil
			case <-time.After(time.Minute):
				t.Fatal("a sender still waits for room, which there is")
			}
		}
	})
}

// TestPerhapsReceived: what was received by one who could not say so before it left is not
// reported as never delivered.
func TestPerhapsReceived(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		told := make(chan fabric.Undeliverable, 1)
		a, la := joinLink(t, s, "a", small, func(c *fabric.Config) {
			c.Lease = time.Minute
			c.OnUndeliverable = func(u fabric.Undeliverable) { told <- u }
		})
		b, _ := joinLink(t, s, "b", small)
		await(t, a, "a", "b")
		la.CutReplies()
		if err := a.SendMsg(t.Context(), &fabric.Message{To: "b", Mode: fabric.Reliable}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Receive(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := b.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		la.Kill()
		la.Heal()
		select {
		case u := <-told:
			if !errors.Is(u, fabric.ErrNoPeer) || !errors.Is(u, fabric.ErrUnknownOutcome) {
				t.Errorf("reported %v, want ErrNoPeer of unknown outcome", u)
			}
		case <-time.After(time.Minute):
			t.Error("nothing is reported")
		}
	})
}

// TestLargeCallToNobody: who awaits an answer to a large message is told that nobody gets
// it, as of a small one, and nobody else.
func TestLargeCallToNobody(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _ := joinLink(t, s, "a", small, func(c *fabric.Config) {
			c.OnUndeliverable = func(u fabric.Undeliverable) { t.Errorf("told of %v", u) }
		})
		large := make([]byte, 300<<10)
		for name, call := range map[string]func(context.Context) error{
			"request": func(ctx context.Context) error {
				_, err := a.Request(ctx, "nobody", large)
				return err
			},
			"acked": func(ctx context.Context) error {
				return a.SendMsg(ctx, &fabric.Message{To: "nobody", Mode: fabric.Acked, Data: large})
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			began := time.Now()
			err := call(ctx)
			cancel()
			if took := time.Since(began); !errors.Is(err, fabric.ErrNoPeer) || errors.Is(err, fabric.ErrUnknownOutcome) || took > time.Second {
				t.Errorf("%s: %v after %v, want ErrNoPeer at once", name, err, took)
			}
		}
		if st := a.Stats(); st.Undeliverable != 0 {
			t.Errorf("%d are counted as undeliverable", st.Undeliverable)
		}
	})
}

// TestReliableNowAndThen: a link that has not been used for long carries the next message,
// also of one who is no member.
func TestReliableNowAndThen(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		slow := func(c *fabric.Config) { c.Lease = time.Minute }
		p, _ := joinLink(t, s, "p", slow, func(c *fabric.Config) { c.Passive = true })
		b, _ := joinLink(t, s, "b", slow)
		for i, rest := range []time.Duration{time.Minute, 15 * time.Minute, 0} {
			if err := p.SendMsg(t.Context(), &fabric.Message{To: "b", Mode: fabric.Reliable, Data: fmt.Append(nil, i)}); err != nil {
				t.Fatal(err)
			}
			if err := p.Flush(t.Context()); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			m, err := b.Receive(ctx)
			cancel()
			if err != nil || string(m.Data) != fmt.Sprint(i) {
				t.Fatalf("message %d: %v, %v", i, m, err)
			}
			time.Sleep(rest)
		}
	})
}

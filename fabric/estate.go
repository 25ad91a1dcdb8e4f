package fabric

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// An estate is what the process before had, while it is not settled.
type estate struct {
	b       *mailbox
	last    uint64     // place in the stream of the newest that it got
	fresh   []*Message // what it never saw, held back
	waited  time.Duration
	settled bool
}

// hand puts what was held back into the inbox.
func (e *estate) hand() {
	for _, m := range e.fresh {
		e.b.hand(m)
	}
	e.fresh = nil
}

// inherit fetches one at a time until the estate is settled, but for what failed or is
// parked: this process got over that, and it may stay so for long. What the process before
// never saw comes after it. After an error it is to be called again, when the mailbox is
// open.
func (e *estate) inherit(ctx context.Context) error {
	b := e.b
	info := b.cons.CachedInfo()
	for info.AckFloor.Stream < e.last && info.NumAckPending > b.known() {
		m, err := b.next(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, jetstream.ErrNoMessages):
		case err != nil:
			return err
		default:
			if meta, err := m.Metadata(); err == nil && meta.NumDelivered == 1 {
				if msg := b.admit(m); msg != nil {
					e.fresh = append(e.fresh, msg)
				}
				if err := e.wait(ctx); err != nil {
					return err
				}
				break
			}
			b.deliver(m)
			if err := b.awaitHeld(ctx, len(e.fresh)); err != nil {
				return err
			}
		}
		if info, err = b.info(ctx); err != nil {
			return err
		}
	}
	e.settled = true
	e.hand()
	return nil
}

// wait gives the server time to deliver again what the process before had: little first,
// as what it gave back comes soon, and no more than the server's patience in all.
func (e *estate) wait(ctx context.Context) error {
	patience := e.b.cons.CachedInfo().Config.AckWait
	d := min(max(e.waited, handOver), max(patience-e.waited, 0))
	e.waited += d
	return pauseFor(ctx, d)
}

func (b *mailbox) next(ctx context.Context) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return b.cons.Next(jetstream.FetchContext(ctx))
}

func (b *mailbox) info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	return b.cons.Info(ctx)
}

// known returns how many messages were delivered to this process and are not settled. If
// that is as many as the server waits for, nothing of an estate is still to come.
func (b *mailbox) known() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.letters)
}

// awaitHeld waits until no more than n messages are held.
func (b *mailbox) awaitHeld(ctx context.Context, n int) error {
	for {
		b.mu.Lock()
		held := b.held
		b.mu.Unlock()
		if held <= n {
			return nil
		}
		select {
		case <-b.idle:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

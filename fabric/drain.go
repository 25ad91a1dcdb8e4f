package fabric

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// Drain leaves without losing anything, as far as ctx allows: it refuses new sends
// with [ErrDraining], waits until everything sent has left and, on links, been
// acknowledged, a broken connection included, then takes no more messages in, waits
// until those that came were received and handled, of mode Durable by [Message.Done],
// and leaves as [Node.Leave] does.
//
// If ctx ends first it leaves all the same, in no time, and the error wraps a
// [*DrainError] that counts what was lost. So it does if a connection broke since the last
// [Node.Flush], and some of what was sent on it may be lost: the error then wraps
// [ErrUnknownOutcome].
func (n *Node) Drain(ctx context.Context) error {
	lost := n.courier.drain(ctx)
	leave := ctx
	if ctx.Err() != nil { // what is written must be written nevertheless
		var cancel context.CancelFunc
		leave, cancel = context.WithTimeout(context.WithoutCancel(ctx), n.cfg.Lease/2)
		defer cancel()
	}
	return errors.Join(lost, n.Leave(leave))
}

// A DrainError counts what [Node.Drain] could not wait for.
type DrainError struct {
	// Unsent waited for the connection, or for the server to process them: all that is
	// known is that some may be lost.
	Unsent int
	// Unacknowledged were sent on links; they may have arrived.
	Unacknowledged int
	// Unhandled were received by the node and not by the program, or are still being
	// handled: of mode Durable until [Message.Done]. Those come again, to the next process.
	Unhandled int
	// Err is why it did not wait longer, and what [Node.Flush] says of messages whose
	// connection broke.
	Err error
}

func (e *DrainError) Error() string {
	return fmt.Sprintf("fabric: drain: %d messages not sent, %d not acknowledged, %d not handled: %v",
		e.Unsent, e.Unacknowledged, e.Unhandled, e.Err)
}

// Unwrap returns e.Err.
func (e *DrainError) Unwrap() error { return e.Err }

// drain waits until nothing is under way, or returns a DrainError.
func (c *courier) drain(ctx context.Context) error {
	first := !c.draining.Swap(true)
	broken, err := c.empty(ctx)
	if err == nil && first && !c.off {
		err = c.mail.stopIntake(ctx)
	}
	if err == nil && first {
		err = c.stopIntake(ctx)
	}
	if err == nil {
		err = c.poll(ctx, func() bool { return c.unhandled() == 0 })
	}
	switch {
	case err == nil && broken == nil:
		return nil
	case err == nil:
		err = broken
	case broken != nil:
		err = fmt.Errorf("%w, and %w", err, broken)
	}
	e := &DrainError{Unsent: c.batcher.shelved(), Unhandled: c.unhandled(), Err: err}
	for _, l := range c.links.all() {
		l.mu.Lock()
		e.Unacknowledged += len(l.pending())
		l.mu.Unlock()
	}
	return e
}

// empty waits until all that was sent is processed. What had no receiver was
// reported; a broken connection is waited for, and broken is what that may have lost.
func (c *courier) empty(ctx context.Context) (broken, err error) {
	for {
		err := c.poll(ctx, func() bool { return c.batcher.shelved() == 0 && c.nc.IsConnected() })
		if err == nil {
			err = c.flush(ctx)
		}
		if errors.Is(err, errBroken) {
			broken = errBroken
		}
		switch {
		case ctx.Err() != nil:
			return broken, context.Cause(ctx)
		case errors.Is(err, ErrClosed):
			return broken, err
		case errors.Is(err, ErrDisconnected), errors.Is(err, context.DeadlineExceeded):
			continue
		}
		return broken, nil
	}
}

// stopIntake ends the subscriptions that lead to the inbox, and waits until what the
// server had sent is in it.
func (c *courier) stopIntake(ctx context.Context) error {
	if c.off || c.intakeEnds.Swap(true) {
		return nil
	}
	c.services.drain()
	c.subsMu.Lock()
	for _, sub := range c.subs {
		if sub.Type() == nats.ChanSubscription {
			_ = sub.Drain() // fails on a closed connection only
		}
	}
	c.subsMu.Unlock()
	flush, cancel := context.WithTimeout(ctx, DefaultRequestTimeout)
	defer cancel()
	if err := c.nc.FlushWithContext(flush); err != nil {
		return natsError(err)
	}
	select { // behind all that came
	case c.ch <- c.end:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.done:
		return ErrClosed
	}
	select {
	case <-c.through:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.done:
		return ErrClosed
	}
}

// departTimeout bounds how long the server may take to hear that nothing more is wanted,
// when a node leaves.
const departTimeout = time.Second

// handOut waits until what is queued, answers above all, is with the connection: others
// count on hearing it before they learn that the node has left.
func (c *courier) handOut(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, departTimeout)
	defer cancel()
	_ = c.poll(ctx, c.batcher.idle)
}

// depart has the server send nothing more to the inbox and to services, and refuses what
// came, awaits an answer, and was not taken yet: who asked is not left waiting, and who
// asks later hears from the server that nobody is there. What is being handled goes on.
func (c *courier) depart(ctx context.Context) {
	if c.off || ctx.Err() != nil || !c.nc.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, departTimeout)
	defer cancel()
	if err := c.stopIntake(ctx); err != nil {
		c.log.Debug("the server did not confirm that nothing more is wanted", "pid", c.cfg.pid, "err", err)
	}
	for _, q := range append(c.services.inboxes(), c.inbox) {
		for _, m := range q.abandon() {
			m.taken()
			c.notices.add(notice{m: m, refused: true})
		}
	}
	_ = c.poll(ctx, c.notices.idle) // else they find out by their deadlines
}

// unhandled returns how many messages wait to be received, or are being handled.
func (c *courier) unhandled() int {
	return c.inbox.unhandled() + c.services.unhandled() + c.mail.inHand()
}

// pollEvery is how often a drain looks whether it is through.
const pollEvery = 2 * time.Millisecond

func (c *courier) poll(ctx context.Context, done func() bool) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !done() {
		select {
		case <-timer.C:
			timer.Reset(pollEvery)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.done:
			return ErrClosed
		}
	}
	return nil
}

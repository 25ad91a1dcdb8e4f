package fabric

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// postAcked sends o and waits until its receiver has acknowledged it; if d is
// everyone, each of the other members.
func (c *courier) postAcked(ctx context.Context, d *dest, ack Ack, o *outgoing) error {
	switch ack {
	case Accepted:
		o.kind = kindAccept
	case Handled:
		o.kind = kindHandle
	default:
		return &ConfigError{"Ack", ack.String() + " is none"}
	}
	if d.pid != Everyone {
		return c.exchangeAck(ctx, c.openAck(ctx, d, o))
	}
	var open []*ackWait
	for _, pid := range c.cfg.others() {
		d, err := c.dest(pid)
		if err != nil {
			return err // a view has legal PIDs only
		}
		open = append(open, c.openAck(ctx, d, o))
	}
	var errs []error
	for _, w := range open {
		if err := c.exchangeAck(ctx, w); err != nil {
			errs = append(errs, Undeliverable{To: w.call.from, ID: o.id, Err: err})
		}
	}
	return errors.Join(errs...)
}

// An ackWait is a message sent, or not, whose acknowledgement is awaited.
type ackWait struct {
	call  *call
	began time.Time
	err   error // of sending it
}

func (c *courier) openAck(ctx context.Context, d *dest, o *outgoing) *ackWait {
	w := &ackWait{began: time.Now(), call: c.calls.open(o.id, d.pid)}
	sent := *o
	sent.secret = w.call.secret
	if w.err = c.ask(ctx, d, &sent); w.err != nil {
		c.calls.take(w.call)
	}
	return w
}

func (c *courier) exchangeAck(ctx context.Context, w *ackWait) error {
	if w.err != nil {
		return w.err
	}
	a, err := c.await(ctx, &c.calls, w.call)
	if err != nil {
		return fmt.Errorf("%w: no acknowledgement of message %d within %v: %w",
			ErrUnknownOutcome, w.call.id, time.Since(w.began).Round(time.Millisecond), err)
	}
	if a.kind == kindAck {
		return nil
	}
	return c.refusal(ctx, w.call.from, a)
}

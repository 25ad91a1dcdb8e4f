package election

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go"
)

// isHopeless reports whether nats.go will never send the message, whatever became of
// attempts before.
func isHopeless(err error) bool {
	return slices.ContainsFunc([]error{
		nats.ErrMaxPayload, nats.ErrBadSubject, nats.ErrBadHeaderMsg, nats.ErrHeadersNotSupported,
		nats.ErrConnectionDraining, nats.ErrConnectionClosed,
	}, func(target error) bool { return errors.Is(err, target) })
}

// isUnsent reports whether nats.go refused to send. [nats.ErrConnectionClosed] and
// [nats.ErrDisconnected] do not say that: they end requests that were sent, too.
func isUnsent(err error) bool {
	if errors.Is(err, nats.ErrConnectionClosed) {
		return false
	}
	return isHopeless(err) || errors.Is(err, nats.ErrReconnectBufExceeded)
}

// ready reports why nothing can be sent now. What is sent while the connection is broken
// waits in its buffer, and may be stored when the stream no longer knows it again.
func (p *StreamPublisher) ready(ctx context.Context) error {
	nc := p.js.Conn()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case nc.IsClosed():
		return nats.ErrConnectionClosed
	case !nc.IsConnected():
		return nats.ErrDisconnected
	}
	return nil
}

// inDoubt adds to err that an attempt may have been stored.
func inDoubt(err error, doubt bool) error {
	if doubt {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return err
}

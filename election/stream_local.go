package election

import (
	"context"
	"errors"
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

// ready reports why nothing can be sent now.
func (p *StreamPublisher) ready(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if p.js.Conn().IsClosed() {
		return nats.ErrConnectionClosed
	}
	return nil
}

package middleware

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

// DefaultTimeout is that of a [Timeout] without one.
const DefaultTimeout = 5 * time.Second

// Timeout ends the context of what it wraps. It does not abandon it: a handler that
// does not look at its context goes on, and if it returns no error its result counts.
// An error after the limit wraps [ErrTimeout].
type Timeout struct {
	After time.Duration // default DefaultTimeout
}

// Handler limits the time of next.
func (t Timeout) Handler(next Handler) Handler {
	return in(next, func(ctx context.Context, _ *fabric.Message, f step[[]byte]) ([]byte, error) {
		data, late, err := limited(ctx, t.After, f)
		if late {
			err = encode(err, ErrTimeout)
		}
		return data, err
	})
}

// Sender limits the time of next. Around a [Retry] it is the limit of all tries,
// inside it that of each.
func (t Timeout) Sender(next Sender) Sender {
	return out(next, func(ctx context.Context, _ *fabric.Message, f step[*fabric.Message]) (*fabric.Message, error) {
		answer, _, err := limited(ctx, t.After, f)
		return answer, err
	})
}

// limited reports whether the error came after the limit; it then wraps ErrTimeout.
func limited[R any](ctx context.Context, d time.Duration, f step[R]) (r R, late bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(d, DefaultTimeout), ErrTimeout)
	defer cancel()
	if r, err = f(ctx); err == nil || ctx.Err() == nil || context.Cause(ctx) != ErrTimeout {
		return r, false, err
	}
	if !errors.Is(err, ErrTimeout) {
		err = fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	return r, true, err
}

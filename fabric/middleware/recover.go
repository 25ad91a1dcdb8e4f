package middleware

import (
	"cmp"
	"context"
	"log/slog"
	"runtime/debug"

	"github.com/natsfabric/natsfabric/fabric"
)

// Recover turns panics into a [*PanicError]. The other messages go on: a panic
// outside of it ends the process.
type Recover struct {
	// Logger gets each panic with its stack. Default: slog.Default().
	Logger *slog.Logger
}

// Handler recovers the panics of next.
func (r Recover) Handler(next Handler) Handler {
	return in(next, func(ctx context.Context, m *fabric.Message, f step[[]byte]) ([]byte, error) {
		data, err := recovered(ctx, r.Logger, m, f)
		if e, ok := err.(*PanicError); ok {
			err = encode(e, ErrPanic)
		}
		return data, err
	})
}

// Sender recovers the panics of next, other middleware that is.
func (r Recover) Sender(next Sender) Sender {
	return out(next, func(ctx context.Context, m *fabric.Message, f step[*fabric.Message]) (*fabric.Message, error) {
		return recovered(ctx, r.Logger, m, f)
	})
}

func recovered[R any](ctx context.Context, l *slog.Logger, m *fabric.Message, f step[R]) (r R, err error) {
	defer func() {
		if p := recover(); p != nil {
			e := &PanicError{p, debug.Stack()}
			cmp.Or(l, slog.Default()).ErrorContext(ctx, "panic", "from", m.From, "to", m.To, "id", m.ID, "type", m.Type,
				"err", p, "stack", string(e.Stack))
			var zero R
			r, err = zero, e
		}
	}()
	return f(ctx)
}

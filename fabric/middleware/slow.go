package middleware

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

// DefaultSlow is what a [Slow] without a bound calls slow.
const DefaultSlow = time.Second

// Slow logs, at level Warn, what takes long: once while it still runs, so that what
// never ends is seen, and once when it is done.
type Slow struct {
	Over   time.Duration // default DefaultSlow
	Logger *slog.Logger  // default slog.Default()
}

// Handler logs slow handling.
func (s Slow) Handler(next Handler) Handler {
	return in(next, func(ctx context.Context, m *fabric.Message, f step[[]byte]) ([]byte, error) {
		return timed(ctx, s, "handling is slow", m, f)
	})
}

// Sender logs slow sends and requests.
func (s Slow) Sender(next Sender) Sender {
	return out(next, func(ctx context.Context, m *fabric.Message, f step[*fabric.Message]) (*fabric.Message, error) {
		return timed(ctx, s, "sending is slow", m, f)
	})
}

func timed[R any](ctx context.Context, s Slow, text string, m *fabric.Message, f step[R]) (R, error) {
	began, over := time.Now(), cmp.Or(s.Over, DefaultSlow)
	from, to, id, typ, size := m.From, m.To, m.ID, m.Type, len(m.Data) // m is f's from here on
	warn := func(args ...any) {
		l := cmp.Or(s.Logger, slog.Default()).With("from", from, "to", to, "id", id, "type", typ, "bytes", size)
		l.WarnContext(ctx, text, args...)
	}
	running := time.AfterFunc(over, func() { warn("done", false, "took", over) })
	r, err := f(ctx)
	if !running.Stop() {
		warn("done", true, "took", time.Since(began), "err", err)
	}
	return r, err
}

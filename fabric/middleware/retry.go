package middleware

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

// Defaults of [Retry].
const (
	DefaultTries   = 3
	DefaultWait    = 50 * time.Millisecond
	DefaultMaxWait = 2 * time.Second
)

// Retry tries again after an error that passes.
type Retry struct {
	// Tries is how often at most, the first included. Default [DefaultTries].
	Tries int
	// Wait is the pause after the first try; it doubles up to MaxWait. A random part
	// of it, at most half, is left out, so that those who failed together do not
	// come back together. Defaults [DefaultWait] and [DefaultMaxWait].
	Wait, MaxWait time.Duration
	// If says after which errors. Default: for sending, [NotArrived], which never
	// makes two messages of one; for handling, every error but one that has a
	// [fabric.RemoteError] with a Code in it, which the handler meant to be final. That of
	// a [Timeout] inside, which the handler did not mean, is none.
	If func(error) bool
}

// NotArrived reports whether an error of a send or request is one that passes and
// says that nobody got the message: the node is disconnected, the receiver
// unreachable, its inbox full, or nobody there who serves or has joined. The error of a broadcast that reached some members
// is none.
func NotArrived(err error) bool {
	if _, some := errors.AsType[fabric.Undeliverable](err); some || errors.Is(err, fabric.ErrUnknownOutcome) {
		return false
	}
	return slices.ContainsFunc([]error{
		fabric.ErrDisconnected, fabric.ErrUnreachable, fabric.ErrInboxFull, fabric.ErrNoReceiver,
	}, func(passing error) bool { return errors.Is(err, passing) })
}

func notFinal(err error) bool {
	e, ok := errors.AsType[*fabric.RemoteError](err)
	return !ok || e.Code == "" || errors.Is(err, ErrTimeout)
}

// Handler calls next again after an error. The worker does nothing else meanwhile.
func (r Retry) Handler(next Handler) Handler {
	if r.If == nil {
		r.If = notFinal
	}
	return in(next, func(ctx context.Context, _ *fabric.Message, f step[[]byte]) ([]byte, error) {
		return tried(ctx, r, f)
	})
}

// Sender sends again after an error. A message without an ID gets another one then.
func (r Retry) Sender(next Sender) Sender {
	if r.If == nil {
		r.If = NotArrived
	}
	return out(next, func(ctx context.Context, _ *fabric.Message, f step[*fabric.Message]) (*fabric.Message, error) {
		return tried(ctx, r, f)
	})
}

// tried returns the last try's result. Its error is left as it is for one try, so that
// what a handler returned is what its sender reads.
func tried[R any](ctx context.Context, c Retry, f step[R]) (R, error) {
	tries, wait, longest := cmp.Or(c.Tries, DefaultTries), cmp.Or(c.Wait, DefaultWait), cmp.Or(c.MaxWait, DefaultMaxWait)
	for n := 1; ; n++ {
		r, err := f(ctx)
		if err == nil {
			return r, nil
		}
		if n >= tries || ctx.Err() != nil || !c.If(err) || pause(ctx, wait-rand.N(max(0, wait/2)+1)) != nil {
			if n > 1 {
				err = fmt.Errorf("%d tries: %w", n, err)
			}
			return r, err
		}
		wait = min(2*wait, longest)
	}
}

// pause waits, and returns the cause of ctx's end if that comes first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

package fabric

import (
	"context"
	"errors"
	"sync"
)

// maxErrorText bounds the text of a handler's error on the wire, in bytes.
const maxErrorText = 8 << 10

// Handle receives messages and calls f with each, in at most workers goroutines
// at once, its own among them; less than 1 means 1, which keeps each sender's
// order. It returns when ctx has ended, with its cause, or when the node has closed, with
// [ErrClosed], after the last f returned. The context of f ends then, too.
//
// If the message is a request, f's result answers it, unless f did so itself: the
// bytes, nil included, or the error's text, which the requester gets as a
// [*RemoteError]. An answer to [External] that is too large for the server becomes such
// an error. Of
// other messages the bytes are discarded, and an error is logged; the sender of one
// whose handling is to be acknowledged is told either way. A panic in f is not
// recovered.
func (n *Node) Handle(ctx context.Context, workers int, f func(context.Context, *Message) ([]byte, error)) error {
	return n.courier.handle(ctx, n.courier.inbox, workers, f)
}

type handler func(context.Context, *Message) ([]byte, error)

// handle is Handle for the messages in q.
func (c *courier) handle(ctx context.Context, q *inbox, workers int, f handler) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(life{c}, func() { cancel(ErrClosed) })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for range workers - 1 {
		wg.Go(func() { _ = c.work(ctx, q, f) })
	}
	return c.work(ctx, q, f)
}

// work is one worker. It leaves in q what is there when the node closes:
// nothing of it could be answered.
func (c *courier) work(ctx context.Context, q *inbox, f handler) error {
	for {
		if c.closed.Load() {
			return ErrClosed
		}
		m, err := q.take(ctx, c.done, 1)
		if err != nil {
			return err
		}
		data, err := f(ctx, m)
		c.finish(m, data, err)
		q.worked(m)
	}
}

// finish does with a handler's result what is due.
func (c *courier) finish(m *Message, data []byte, err error) {
	var sent error
	switch {
	case m.IsRequest() && err == nil:
		sent = m.reply(life{c}, kindAnswer, "", data)
		if errors.Is(sent, ErrTooLarge) {
			code, text := errorText(sent)
			sent = m.reply(life{c}, kindError, code, text)
		}
	case m.IsRequest():
		code, text := errorText(err)
		sent = m.reply(life{c}, kindError, code, text)
	default:
		if err != nil {
			c.log.Warn("handler failed", "pid", c.cfg.pid, "from", m.From, "id", m.ID, "err", err)
		}
		sent = m.Done(life{c}, err)
	}
	if sent != nil && !errors.Is(sent, ErrReplied) {
		c.log.Warn("answer not sent", "pid", c.cfg.pid, "to", m.From, "id", m.ID, "err", sent)
	}
}

// errorText returns what the sender is told of a handler's error.
func errorText(err error) (code string, text []byte) {
	s := err.Error()
	if e, ok := errors.AsType[*RemoteError](err); ok && checkType(e.Code) == nil {
		code = e.Code
	}
	return code, []byte(s[:min(len(s), maxErrorText)])
}

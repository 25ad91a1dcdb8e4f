package middleware

import (
	"context"
	"errors"
	"fmt"

	"github.com/natsfabric/natsfabric/fabric"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrPanic: a handler, or what sends, panicked. See [PanicError].
	ErrPanic = errors.New("middleware: panic")
	// ErrTimeout: a [Timeout] ended. It is also a context.DeadlineExceeded.
	ErrTimeout = fmt.Errorf("middleware: time limit: %w", context.DeadlineExceeded)
	// ErrThrottled: a [Throttle] with Reject refused the message.
	ErrThrottled = errors.New("middleware: throttled")
	// ErrDuplicate: the request was handled before, by the word of [Dedup], and its
	// answer is not kept.
	ErrDuplicate = errors.New("middleware: duplicate")
)

// Codes of the [fabric.RemoteError] that these errors are on the other side.
const (
	CodePanic     = "Panic"
	CodeTimeout   = "Timeout"
	CodeThrottled = "Throttled"
	CodeDuplicate = "Duplicate"
)

var codes = map[error]string{
	ErrPanic:     CodePanic,
	ErrTimeout:   CodeTimeout,
	ErrThrottled: CodeThrottled,
	ErrDuplicate: CodeDuplicate,
}

// A PanicError is a recovered panic. It wraps [ErrPanic]. Its text, which goes to the
// sender, does not have the Value.
type PanicError struct {
	Value any
	Stack []byte
}

// Error says that there was a panic.
func (e *PanicError) Error() string { return "internal error: panic" }

// Unwrap returns [ErrPanic], and the Value if it is an error.
func (e *PanicError) Unwrap() []error {
	if err, ok := e.Value.(error); ok {
		return []error{ErrPanic, err}
	}
	return []error{ErrPanic}
}

// coded is err with the code by which the other side knows it. Its text is err's.
type coded struct {
	err  error
	code string
}

func (c coded) Error() string { return c.err.Error() }
func (c coded) Unwrap() []error {
	return []error{&fabric.RemoteError{Code: c.code, Message: c.err.Error()}, c.err}
}

// encode gives err the code of category, which it wraps.
func encode(err, category error) error { return coded{err, codes[category]} }

// explain puts the category of what the other side answered before err.
func explain(err error) error {
	if e, ok := errors.AsType[*fabric.RemoteError](err); ok && e.PID != "" {
		for category, code := range codes {
			if code == e.Code {
				return fmt.Errorf("%w: %w", category, err)
			}
		}
	}
	return err
}

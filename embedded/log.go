package embedded

import (
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/nats-io/nats-server/v2/server"
)

// logger hands the server's log to slog. The server's notices are Info, its traces
// Debug. Until the server is up, its first fatal error goes to fatal instead:
// nats-server has no other way to say that it could not start.
type logger struct {
	log   *slog.Logger
	up    atomic.Bool
	fatal chan error // capacity 1; later ones are logged
}

var _ server.Logger = (*logger)(nil)

func (l *logger) Noticef(format string, v ...any) { l.log.Info(fmt.Sprintf(format, v...)) }
func (l *logger) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l *logger) Errorf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l *logger) Debugf(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *logger) Tracef(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }

// Fatalf is called with locks of the server held.
func (l *logger) Fatalf(format string, v ...any) {
	err := &fatalError{text: fmt.Sprintf(format, v...)}
	for _, arg := range v {
		if cause, ok := arg.(error); ok {
			err.cause = cause
		}
	}
	if !l.up.Load() {
		select {
		case l.fatal <- err:
			return
		default:
		}
	}
	l.log.Error(err.text)
}

// fatalError is what the server said, and the error it said it about.
type fatalError struct {
	text  string
	cause error
}

func (e *fatalError) Error() string { return e.text }
func (e *fatalError) Unwrap() error { return e.cause }

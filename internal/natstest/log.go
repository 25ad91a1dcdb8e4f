package natstest

import (
	"fmt"
	"strings"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// log is the server's log, kept in memory.
type log struct {
	mu    sync.Mutex // guards lines
	lines []string
}

var _ server.Logger = (*log)(nil)

func (l *log) add(level, format string, v []any) {
	line := level + " " + fmt.Sprintf(format, v...)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (l *log) Noticef(format string, v ...any) { l.add("INF", format, v) }
func (l *log) Warnf(format string, v ...any)   { l.add("WRN", format, v) }
func (l *log) Fatalf(format string, v ...any)  { l.add("FTL", format, v) }
func (l *log) Errorf(format string, v ...any)  { l.add("ERR", format, v) }
func (l *log) Debugf(format string, v ...any)  { l.add("DBG", format, v) }
func (l *log) Tracef(format string, v ...any)  { l.add("TRC", format, v) }

func (l *log) asyncError(nc *nats.Conn, sub *nats.Subscription, err error) {
	if sub != nil {
		l.add("CLI", "%q on the subscription to %s", []any{err, sub.Subject})
		return
	}
	l.add("CLI", "%q on a connection", []any{err})
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// count returns how many lines have the text.
func (l *log) count(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (l *log) tail(n int) string { return tail(l.String(), n) }

// tail returns the last n lines of a text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

package election_test

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A diary keeps what the nodes of a test log, for when something went wrong: who did
// what when cannot be had by running it again, since goroutines run in another order.
type diary struct {
	mu    sync.Mutex // guards lines
	lines []diaryLine
}

type diaryLine struct {
	at   time.Time
	text string
}

// Write takes one record of a handler of slog's.
func (d *diary) Write(text []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, diaryLine{time.Now(), string(text)})
	return len(text), nil
}

// of returns a logger for a node.
func (d *diary) of(node string) *slog.Logger {
	return slog.New(slog.NewTextHandler(d, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.String(a.Key, a.Value.Time().Format("15:04:05.000000000"))
			}
			return a
		},
	})).With("node", node)
}

// show prints what was logged before the first thing that is wrong with the history.
func (d *diary) show(t *testing.T, history []natstest.Belief) {
	byStart := natstest.InOrder(history)
	for i, b := range byStart {
		if len(natstest.CheckBeliefs(byStart[:i+1])) == 0 {
			continue
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, l := range d.lines {
			if l.at.After(b.From.Add(-20*time.Second)) && l.at.Before(b.From.Add(time.Second)) {
				t.Log(l.text)
			}
		}
		return
	}
}

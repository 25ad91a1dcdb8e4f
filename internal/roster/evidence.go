package roster

import (
	"context"
	"encoding/binary"
	"log/slog"
	"sync"
	"time"
)

// Evidence is a node's way to tell the coordinator of the members that a process may
// have ended: itself, if it is the one, and else by a signal. It is safe for
// concurrent use, and waits for nobody.
type Evidence struct {
	signals Signals
	logger  *slog.Logger

	mu   sync.Mutex // guards the fields below
	desk *desk      // nil unless this node coordinates
	told map[incarnation]time.Time
}

// A desk is where a coordinator takes evidence in.
type desk struct {
	reports     chan report   // capacity 64: of what finds it full, the lease decides
	reconnected chan struct{} // capacity 1
}

// A report says that there is a sign of the end of an incarnation.
type report struct {
	incarnation
	sign Sign
}

// KindSuspect is the signal that carries a report to the coordinator.
const KindSuspect = "suspect"

// tellEvery is how often a node reports the same incarnation.
const tellEvery = time.Second

// NewEvidence returns a node's Evidence.
func NewEvidence(signals Signals, logger *slog.Logger) *Evidence {
	return &Evidence{signals: signals, logger: logger, told: map[incarnation]time.Time{}}
}

// Report tells of a sign. It costs at most one message a second for each incarnation.
func (e *Evidence) Report(pid string, inc uint64, s Sign) {
	r := report{incarnation{pid, inc}, s}
	now := time.Now()
	e.mu.Lock()
	again := now.Sub(e.told[r.incarnation]) < tellEvery
	if !again {
		for id, at := range e.told {
			if now.Sub(at) >= tellEvery {
				delete(e.told, id)
			}
		}
		e.told[r.incarnation] = now
	}
	desk := e.desk
	e.mu.Unlock()
	switch {
	case again:
	case desk != nil:
		desk.take(r)
	default:
		if err := e.signals.Signal(KindSuspect, r.encode()); err != nil {
			e.logger.Debug("suspicion not reported", "pid", pid, "err", err)
		}
	}
}

// Reconnected tells a coordinator that its own connection is new.
func (e *Evidence) Reconnected() {
	e.mu.Lock()
	desk := e.desk
	e.mu.Unlock()
	if desk == nil {
		return
	}
	select {
	case desk.reconnected <- struct{}{}:
	default:
	}
}

// open has reports come to the coordinator that this node now is, until close.
func (e *Evidence) open() (d *desk, close func(), err error) {
	d = &desk{reports: make(chan report, 64), reconnected: make(chan struct{}, 1)}
	stop, err := e.signals.OnSignal(KindSuspect, func(_ string, data []byte) {
		if r, ok := parseReport(data); ok {
			d.take(r)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	e.mu.Lock()
	e.desk = d
	e.mu.Unlock()
	return d, func() {
		stop()
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.desk == d {
			e.desk = nil
		}
	}, nil
}

func (d *desk) take(r report) {
	select {
	case d.reports <- r:
	default:
	}
}

// A report on the wire: a version, the sign, the incarnation, the PID.
const reportVersion = 1

func (r report) encode() []byte {
	b := binary.AppendUvarint([]byte{reportVersion, byte(r.sign)}, r.inc)
	return append(b, r.pid...)
}

func parseReport(data []byte) (r report, ok bool) {
	rd := reader{data: data}
	version, sign, inc := rd.byte(), Sign(rd.byte()), rd.uint()
	ok = !rd.bad && version == reportVersion && sign > 0 && sign < signs && inc > 0 && len(rd.data) > 0
	return report{incarnation{string(rd.data), inc}, sign}, ok
}

// A Probe asks the server whether anybody takes what is sent to a PID. An error says
// that it could not be asked.
type Probe func(ctx context.Context, pid string) (taken bool, err error)

// probeTime bounds one question.
const probeTime = 2 * time.Second

// ask asks for an incarnation.
func (p Probe) ask(ctx context.Context, pid string) finding {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	taken, err := p(ctx, pid)
	switch {
	case err != nil:
		return unclear
	case taken:
		return somebody
	}
	return nobody
}

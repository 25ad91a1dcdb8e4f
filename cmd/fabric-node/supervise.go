package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/natsfabric/natsfabric/election"
)

// A lossAction is what happens to a command whose leadership ends. The zero
// lossAction sends TERM, and KILL after the grace.
type lossAction struct {
	kind string
	sig  syscall.Signal // of kind signal
}

const (
	lossTerm   = "term"
	lossKill   = "kill"
	lossIgnore = "ignore"
	lossSignal = "signal"
)

// Set reads "term", "kill", "ignore" or "signal:NAME".
func (l *lossAction) Set(text string) error {
	kind, name, named := strings.Cut(text, ":")
	switch {
	case named && kind == lossSignal:
		sig, ok := signalNames[strings.TrimPrefix(strings.ToUpper(name), "SIG")]
		if !ok {
			return fmt.Errorf("signal %q is not one of those that can be sent", name)
		}
		*l = lossAction{kind, sig}
		return nil
	case !named && (kind == lossTerm || kind == lossKill || kind == lossIgnore):
		*l = lossAction{kind: kind}
		return nil
	}
	return errors.New("it is not term, kill, signal:NAME or ignore")
}

func (l *lossAction) String() string {
	switch l.kind {
	case "":
		return lossTerm
	case lossSignal:
		for name, sig := range signalNames {
			if sig == l.sig {
				return lossSignal + ":" + name
			}
		}
	}
	return l.kind
}

// Type is for pflag.
func (l *lossAction) Type() string { return "string" }

// stops reports whether the command ends with the leadership.
func (l *lossAction) stops() bool { return l.kind != lossIgnore && l.kind != lossSignal }

// A watch is what a command is supervised by.
type watch struct {
	term   context.Context // ends with the leadership
	onLoss lossAction
	grace  time.Duration // between TERM and KILL
	limit  time.Duration // the same once the leadership was lost
	// giveBack is called when the leadership ends and the command goes on.
	giveBack func()
}

// supervise waits for the command under a leadership, stops it when ctx ends, and does
// what is to be done when the leadership does. It returns the command's exit code, or
// 75 if it was stopped for a loss, or 125 if it could not be killed. When supervise returns
// the command is gone, with its group and its strays.
func (a *app) supervise(ctx context.Context, c *child, w watch) error {
	kill := func() { c.kill() }
	a.abort.Store(&kill)
	defer a.abort.Store(nil)
	err := a.untilEnd(ctx, c, w.term, w.grace)
	cause := context.Cause(w.term)
	switch {
	case cause == nil:
		return err
	case !w.onLoss.stops():
		if w.onLoss.kind == lossSignal {
			c.notify(w.onLoss.sig)
		}
		a.log.Warn("the command goes on without the leadership", "err", cause)
		w.giveBack()
		return a.untilEnd(ctx, c, context.WithoutCancel(ctx), w.grace)
	case w.onLoss.kind == lossKill:
		c.end()
	case errors.Is(cause, election.ErrHandOver): // the lease holds until the group is gone
		c.stop(w.grace)
	default:
		c.stop(w.limit)
	}
	if err := c.refusal(); err != nil {
		return err
	}
	return lostError(cause)
}

func lostError(cause error) error {
	return &exitError{code: exitLost, err: fmt.Errorf("leadership lost: %w", cause)}
}

// untilEnd waits for the command, stops it when ctx ends, and returns its exit code
// when it is gone; or returns at once when term ends.
func (a *app) untilEnd(ctx context.Context, c *child, term context.Context, grace time.Duration) error {
	var patience <-chan time.Time // none: after a signal the command may take its time
	asked := false
	select {
	case <-c.exited:
		// What it left running in the background is not its exit code's business.
		timer := time.NewTimer(grace)
		defer timer.Stop()
		patience = timer.C
	case <-ctx.Done():
		a.note("stopping the command")
		asked = true
	case <-term.Done():
	}
	if term.Err() == nil {
		if asked || !c.gone() {
			c.terminate()
		}
		if !c.waitGone(patience, term.Done()) && term.Err() == nil {
			c.end()
		}
	}
	if err := c.refusal(); err != nil && term.Err() == nil {
		return err
	}
	if term.Err() != nil || c.code == exitOK || asked && c.signal == sigTerminate {
		return nil
	}
	return &exitError{code: c.code}
}

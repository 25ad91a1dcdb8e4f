//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/election"
)

// A process is a child under test, and what it prints.
type process struct {
	*child
	lines *bufio.Scanner
}

func start(t *testing.T, stdin io.Reader, argv ...string) process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	t.Cleanup(func() { r.Close() })
	r.SetReadDeadline(time.Now().Add(patience))
	c, err := startChild(slog.New(slog.DiscardHandler), argv, append(os.Environ(), "EXTRA=set"), stdin, w, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.kill(); c.waitGone(nil, nil) })
	return process{c, bufio.NewScanner(r)}
}

// line returns the next line that the process prints.
func (p process) line(t *testing.T) string {
	t.Helper()
	if !p.lines.Scan() {
		t.Fatalf("the process printed nothing more: %v", p.lines.Err())
	}
	return p.lines.Text()
}

func (p process) alive(t *testing.T, pid string) bool {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatalf("pid %q: %v", pid, err)
	}
	return syscall.Kill(n, 0) == nil
}

func supervised(t *testing.T, ctx, term context.Context, p process, grace, limit time.Duration) error {
	t.Helper()
	a := &app{stderr: io.Discard, told: io.Discard, log: slog.New(slog.DiscardHandler)}
	done := make(chan error, 1)
	go func() {
		done <- a.supervise(ctx, p.child, watch{term: term, grace: grace, limit: limit, giveBack: func() {}})
	}()
	select {
	case err := <-done:
		if !groupGone(p.pid) {
			t.Error("supervise returned before the group was gone")
		}
		return err
	case <-time.After(patience):
		t.Fatal("supervise did not return")
		return nil
	}
}

func TestChildExitCodes(t *testing.T) {
	dir := t.TempDir()
	plain, directory := filepath.Join(dir, "plain"), filepath.Join(dir, "directory")
	garbage := filepath.Join(dir, "garbage")
	if err := errors.Join(os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644), os.Mkdir(directory, 0o755),
		os.WriteFile(garbage, []byte("\x00\x01garbage"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		argv []string
		want int
	}{
		{[]string{"true"}, 0},
		{[]string{"false"}, 1},
		{[]string{"sh", "-c", "exit 42"}, 42},
		{[]string{"sh", "-c", "exit 75"}, 75},
		{[]string{"sh", "-c", "kill -KILL $$"}, 137},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143}, // nobody asked it to: its own end
		{[]string{"sh", "-c", "kill -USR1 $$"}, 138},
		{[]string{"no-such-command-here"}, 127},
		{[]string{filepath.Join(dir, "missing")}, 127},
		{[]string{plain}, 126},
		{[]string{directory}, 126},
		{[]string{garbage}, 126},
	} {
		err := lookCommand(tt.argv[0])
		if err == nil {
			var c *child
			c, err = startChild(slog.New(slog.DiscardHandler), tt.argv, os.Environ(), nil, nil, nil)
			if err == nil {
				err = supervised(t, t.Context(), t.Context(), process{child: c}, time.Second, time.Second)
			}
		}
		if got := exitCode(wrapperError(err)); got != tt.want {
			t.Errorf("%q: exit code %d (%v), want %d", tt.argv, got, err, tt.want)
		}
	}
}

func TestChildInput(t *testing.T) {
	p := start(t, nil, "sh", "-c", "cat; echo end $EXTRA")
	if got := p.line(t); got != "end set" {
		t.Errorf("without stdin the command read %q", got)
	}
	p = start(t, strings.NewReader("given\n"), "cat")
	if got := p.line(t); got != "given" {
		t.Errorf("got %q from stdin, want %q", got, "given")
	}
}

// The whole group is stopped when the leadership is lost, a grandchild included,
// and the exit code is 75 whatever the command makes of it.
func TestLossStopsTheGroup(t *testing.T) {
	term, lose := context.WithCancelCause(t.Context())
	p := start(t, nil, "sh", "-c", `sleep 1000 & echo $!; trap "exit 0" TERM; wait`)
	grandchild := p.line(t)
	if !p.alive(t, grandchild) {
		t.Fatal("the grandchild does not run")
	}
	lose(election.ErrLost)
	err := supervised(t, t.Context(), term, p, time.Minute, time.Minute)
	if got := exitCode(err); got != exitLost || !errors.Is(err, election.ErrLost) {
		t.Errorf("got %v, exit code %d, want %d", err, got, exitLost)
	}
	if p.alive(t, grandchild) {
		t.Errorf("the grandchild %s survived", grandchild)
	}
}

// A group that ignores TERM is killed when its time is up, and not before.
func TestLossKillsAfterGrace(t *testing.T) {
	const grace = 300 * time.Millisecond
	term, lose := context.WithCancelCause(t.Context())
	p := start(t, nil, "sh", "-c", `trap "" TERM; sleep 1000 & echo $!; while :; do wait; done`)
	grandchild := p.line(t)
	begin := time.Now()
	lose(election.ErrLost)
	err := supervised(t, t.Context(), term, p, time.Minute, grace)
	if took := time.Since(begin); took < grace {
		t.Errorf("KILL came after %v, want %v of grace", took, grace)
	}
	if got := exitCode(err); got != exitLost {
		t.Errorf("exit code %d, want %d", got, exitLost)
	}
	if p.alive(t, grandchild) {
		t.Errorf("the grandchild %s survived", grandchild)
	}
}

// A stopped group is continued so that it can hear TERM.
func TestLossContinuesAStoppedGroup(t *testing.T) {
	term, lose := context.WithCancelCause(t.Context())
	p := start(t, nil, "sh", "-c", `trap "echo heard; exit 0" TERM; echo ready; while :; do sleep 0.01; done`)
	p.line(t)
	signalGroup(p.pid, syscall.SIGSTOP)
	lose(election.ErrLost)
	supervised(t, t.Context(), term, p, time.Minute, time.Minute)
	if got := p.line(t); got != "heard" {
		t.Errorf("got %q, want the command to hear TERM", got)
	}
}

// What the command left running is stopped before the leadership is given back,
// and the command's own exit code passes through.
func TestLeftoversAreStopped(t *testing.T) {
	p := start(t, nil, "sh", "-c", "sleep 1000 & echo $!; exit 3")
	grandchild := p.line(t)
	err := supervised(t, t.Context(), t.Context(), p, time.Minute, time.Minute)
	if got := exitCode(err); got != 3 {
		t.Errorf("exit code %d, want 3", got)
	}
	if p.alive(t, grandchild) {
		t.Errorf("the grandchild %s survived", grandchild)
	}
}

func TestLeftoversThatIgnoreTermAreKilled(t *testing.T) {
	p := start(t, nil, "sh", "-c", `trap "" TERM; sleep 1000 & echo $!; exit 3`)
	grandchild := p.line(t)
	err := supervised(t, t.Context(), t.Context(), p, 200*time.Millisecond, time.Minute)
	if got := exitCode(err); got != 3 || p.alive(t, grandchild) {
		t.Errorf("exit code %d, want 3; grandchild alive: %v", got, p.alive(t, grandchild))
	}
}

// After a signal to fabric-node the command is asked to end and waited for.
func TestSignalStopsTheCommand(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		want         int
	}{
		{"dies of it", `echo ready; exec sleep 1000`, 0},
		{"ends well", `trap "exit 0" TERM; echo ready; while :; do sleep 0.01; done`, 0},
		{"has a code", `trap "exit 7" TERM; echo ready; while :; do sleep 0.01; done`, 7},
		{"takes longer than the grace", `trap "sleep 0.3; exit 8" TERM; echo ready; while :; do sleep 0.01; done`, 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			p := start(t, nil, "sh", "-c", tt.script)
			p.line(t)
			cancel(signalError{syscall.SIGTERM})
			err := supervised(t, ctx, t.Context(), p, 10*time.Millisecond, time.Minute)
			if got := exitCode(err); got != tt.want {
				t.Errorf("exit code %d (%v), want %d", got, err, tt.want)
			}
		})
	}
}

// A loss while a slow command is being waited for still ends it in time.
func TestLossWhileStopping(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	term, lose := context.WithCancelCause(t.Context())
	p := start(t, nil, "sh", "-c", `trap "echo heard" TERM; echo ready; while :; do sleep 0.01; done`)
	p.line(t)
	cancel(signalError{syscall.SIGTERM})
	go func() {
		p.lines.Scan() // it heard the TERM of the signal, and goes on
		lose(election.ErrLost)
	}()
	if got := exitCode(supervised(t, ctx, term, p, time.Minute, 50*time.Millisecond)); got != exitLost {
		t.Errorf("exit code %d, want %d", got, exitLost)
	}
}

func TestSideWriter(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(r, w *os.File)
	}{
		{"closed", func(_, w *os.File) { w.Close() }},
		{"nobody reads", func(r, _ *os.File) { r.Close() }},
		{"full", func(_, w *os.File) {
			w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			w.Write(make([]byte, 1<<20))
			w.SetWriteDeadline(time.Time{})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			tt.spoil(r, w)
			s := &sideWriter{w: w, log: slog.New(slog.NewTextHandler(&log, nil))}
			for range 3 {
				if n, err := s.Write([]byte("x")); n != 1 || err != nil {
					t.Errorf("Write = %d, %v; want no error", n, err)
				}
			}
			if got := strings.Count(log.String(), "events are lost"); got != 1 {
				t.Errorf("the loss was logged %d times, want once: %s", got, &log)
			}
		})
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"

	"github.com/natsfabric/natsfabric/fabric"
)

type fileObject struct {
	To      fabric.PID `json:"to,omitempty"`
	From    fabric.PID `json:"from,omitempty"`
	Name    string     `json:"name"`
	Bytes   int64      `json:"bytes"`
	Seconds float64    `json:"seconds"`
}

// sendFile streams the file at path, or stdin for "-", to a member. It takes as long
// as it takes, whatever --timeout says. A signal aborts it, and the member is told.
func (a *app) sendFile(ctx context.Context, path string, to fabric.PID) error {
	from, name, size, err := a.source(ctx, path)
	if err != nil {
		return err
	}
	defer from.Close()
	return a.observe(ctx, func(node *fabric.Node) error {
		a.graceful.Store(true)
		began := time.Now()
		s, err := node.OpenStream(ctx, to, name, size)
		if err != nil {
			return err
		}
		defer a.meter(name, size, s.Acknowledged)()
		n, err := io.Copy(s, from)
		if err == nil {
			err = s.Close()
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			s.Abort()
			return context.Cause(ctx)
		case errors.Is(err, fabric.ErrStreamAborted):
			return &exitError{exitFailed, err, fmt.Sprintf("files are taken by: fabric-node recv %s -i %s", a.where(), to)}
		default:
			s.Abort()
			return err
		}
		return a.transferred(fileObject{To: to, Name: name, Bytes: n, Seconds: time.Since(began).Seconds()})
	})
}

// source opens what is to be sent. Of stdin and pipes the size is not known.
func (a *app) source(ctx context.Context, path string) (from io.ReadCloser, name string, size int64, err error) {
	if path == "-" {
		return piped(ctx, a.stdin), "-", -1, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, "", 0, usagef("--file: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = errors.New(path + " is a directory")
	}
	if err != nil {
		f.Close()
		return nil, "", 0, usagef("--file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return piped(ctx, f), filepath.Base(path), -1, nil
	}
	return f, filepath.Base(path), st.Size(), nil
}

// piped reads from until ctx ends, also where a read waits for longer: that is left behind.
func piped(ctx context.Context, from io.Reader) io.ReadCloser {
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	go func() {
		_, err := io.Copy(w, from)
		w.CloseWithError(err)
	}()
	return r
}

func (a *app) transferred(o fileObject) error {
	if a.table() {
		return nil
	}
	return a.object(o)
}

// meter shows how far a transfer is, on a terminal, until the function it returns is
// called.
func (a *app) meter(name string, size int64, done func() int64) (stop func()) {
	if a.opts.quiet || !isTerminal(a.stderr) {
		return func() {}
	}
	bar := progress.NewWriter()
	bar.SetOutputWriter(a.stderr)
	bar.SetUpdateFrequency(meterEvery)
	bar.SetTrackerPosition(progress.PositionRight)
	t := &progress.Tracker{Message: a.redact(name), Total: max(size, 0), Units: progress.UnitsBytes}
	bar.AppendTracker(t)
	end, ended := make(chan struct{}), make(chan struct{})
	go bar.Render()
	go func() {
		defer close(ended)
		tick := time.NewTicker(meterEvery)
		defer tick.Stop()
		for {
			t.SetValue(done())
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		t.SetValue(done())
		if size >= 0 && t.Value() < size {
			t.MarkAsErrored()
		} else {
			t.MarkAsDone()
		}
		bar.Stop()
		for bar.IsRenderInProgress() {
			time.Sleep(time.Millisecond)
		}
	}
}

const meterEvery = 100 * time.Millisecond

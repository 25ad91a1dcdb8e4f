package main

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// asideLines is how many lines wait for a reader of stderr; more are dropped.
const asideLines = 1024

// flushTime bounds how long the end of the process waits for a reader of stderr.
const flushTime = time.Second

// An aside passes lines on to a writer that may stall, as a pipe does that nobody
// reads: Write never waits. It is safe for concurrent use.
type aside struct {
	w    io.Writer // of the goroutine
	gone chan struct{}

	mu      sync.Mutex
	lines   chan []byte // capacity asideLines: when it is full, lines are dropped and counted
	dropped int
	closed  bool
}

func newAside(w io.Writer) *aside {
	s := &aside{w: w, gone: make(chan struct{}), lines: make(chan []byte, asideLines)}
	go s.pass()
	return s
}

// Write takes a line, or drops it. After close it drops all.
func (s *aside) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return len(p), nil
	}
	select {
	case s.lines <- bytes.Clone(p):
	default:
		s.dropped++
	}
	return len(p), nil
}

// pass writes the lines until close. A failure of stderr has nobody to be told to.
func (s *aside) pass() {
	defer close(s.gone)
	for line := range s.lines {
		s.w.Write(line)
		s.mu.Lock()
		n := s.dropped
		s.dropped = 0
		s.mu.Unlock()
		if n > 0 {
			fmt.Fprintf(s.w, "fabric-node: %s dropped: stderr was not read\n", plural(n, "line"))
		}
	}
}

// close returns when all lines are written, or flushTime has passed.
func (s *aside) close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.lines)
	}
	s.mu.Unlock()
	limit := time.NewTimer(flushTime)
	defer limit.Stop()
	select {
	case <-s.gone:
	case <-limit.C:
	}
}

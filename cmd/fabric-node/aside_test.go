//go:build unix

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// A gate is a writer that writes nothing while it is shut.
type gate struct {
	open chan struct{}
	bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	return g.Buffer.Write(p)
}

func TestAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{open: make(chan struct{})}
		s := newAside(g)
		fmt.Fprintln(s, 0)
		synctest.Wait() // it is the one that is being written
		for i := range asideLines + 2 {
			fmt.Fprintln(s, i+1)
		}
		began := time.Now()
		s.close()
		if took := time.Since(began); took != flushTime {
			t.Errorf("close took %v, want %v", took, flushTime)
		}
		close(g.open)
		s.close()
		text := g.String()
		if got, want := strings.Count(text, "\n"), asideLines+2; got != want {
			t.Errorf("got %d lines, want %d", got, want)
		}
		if !strings.HasPrefix(text, "0\nfabric-node: 2 lines dropped: stderr was not read\n1\n") {
			t.Errorf("got %.80q", text)
		}
		fmt.Fprintln(s, "late")
	})
}

// noisy is a shell command that fills stderr, and goes on.
const noisy = `yes >&2 & `

// stalled gives cmd a stderr that nobody reads.
func stalled(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var ends [2]int
	if err := syscall.Pipe(ends[:]); err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(ends[0])
	syscall.CloseOnExec(ends[1])
	w := os.NewFile(uintptr(ends[1]), "stderr")
	t.Cleanup(func() { syscall.Close(ends[0]); w.Close() })
	cmd.Stderr = w
}

// end waits until the process is gone, or kills it and fails the test.
func end(t *testing.T, cmd *exec.Cmd, limit time.Duration, what string) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit):
		t.Errorf("%s goes on after %v", what, limit)
		cmd.Process.Kill()
		<-done
	}
}

// A leader whose stderr nobody reads stops its command, on a loss and on a signal.
func TestStalledStderr(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		stop func(*os.Process, *atomic.Bool)
	}{
		{"cut off", func(_ *os.Process, cut *atomic.Bool) { cut.Store(true) }},
		{"asked", func(p *os.Process, _ *atomic.Bool) { p.Signal(syscall.SIGTERM) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			addr := natsServer(t, &server.Options{JetStream: true})
			var cut atomic.Bool
			one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
			job := func(addr, notes string) *exec.Cmd {
				return exec.Command("fabric-node", "lead", "x", "-s", "nats://"+addr, "--ttl", "8s", "--grace", "2s", "--timeout", "2s", "--",
					"sh", "-c", noisy+`while :; do date +%s%N >>`+notes+`; sleep 0.005; done`)
			}
			first, second := job(relay(t, addr, &cut), one), job(addr, two)
			for _, cmd := range []*exec.Cmd{first, second} {
				stalled(t, cmd)
			}
			if err := first.Start(); err != nil {
				t.Fatal(err)
			}
			noted(t, one)
			if err := second.Start(); err != nil {
				first.Process.Kill()
				t.Fatal(err)
			}
			tt.stop(first.Process, &cut)
			end(t, first, 30*time.Second, "the first")
			start, _ := noted(t, two)
			_, last := noted(t, one)
			if start <= last {
				t.Errorf("two commands ran for %v", time.Duration(last-start))
			}
			second.Process.Signal(syscall.SIGTERM)
			end(t, second, 30*time.Second, "the second")
		})
	}
}

// A member whose stderr nobody reads has stopped its worker before its index is another's.
func TestStalledStderrOfWorkers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr := natsServer(t, &server.Options{JetStream: true})
	var cut atomic.Bool
	member := func(pid, addr string) *exec.Cmd {
		cmd := exec.Command("fabric-node", "balance", "-i", pid, "-s", "nats://"+addr, "--ttl", "6s", "--timeout", "5s", "--",
			"sh", "-c", noisy+`while :; do date +%s%N >>"`+dir+`/$FABRIC_PID.$FABRIC_WORKER_INDEX.$FABRIC_WORKER_TOTAL"; sleep 0.005; done`)
		stalled(t, cmd)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Signal(syscall.SIGTERM)
			end(t, cmd, 30*time.Second, pid)
		})
		return cmd
	}
	member("a", relay(t, addr, &cut))
	noted(t, filepath.Join(dir, "a.0.1"))
	member("b", addr)
	noted(t, filepath.Join(dir, "b.1.2"))
	noted(t, filepath.Join(dir, "a.0.2"))
	cut.Store(true)
	start, _ := noted(t, filepath.Join(dir, "b.0.1"))
	time.Sleep(500 * time.Millisecond) // for a worker that was not stopped to note more
	_, last := noted(t, filepath.Join(dir, "a.0.2"))
	cut.Store(false)
	if start <= last {
		t.Errorf("two workers had index 0 for %v", time.Duration(last-start))
	}
}

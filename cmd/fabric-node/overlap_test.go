//go:build unix

package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

// relay forwards connections to addr until cut is set; then it swallows what comes,
// as a network does that has lost a link.
func relay(t *testing.T, addr string, cut *atomic.Bool) string {
	t.Helper()
	forward := func(to, from net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if !cut.Load() {
				to.Write(buf[:n])
			}
		}
	}
	return listener(t, func(c net.Conn) {
		up, err := net.Dial("tcp", addr)
		if err != nil {
			c.Close()
			return
		}
		defer up.Close()
		go forward(c, up)
		forward(up, c)
	})
}

// lead starts `fabric-node lead` with a command that ignores TERM and notes the
// time again and again: only the KILL of its supervisor ends it.
func lead(t *testing.T, addr, notes string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("fabric-node", "lead", "x", "-s", "nats://"+addr, "--ttl", "8s", "--grace", "2s", "--timeout", "2s", "--",
		"sh", "-c", `trap "" TERM; while :; do date +%s%N >>`+notes+`; sleep 0.005; done`)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Process.Signal(syscall.SIGINT) // at once: it kills its command
		cmd.Wait()
	})
	return cmd, &stderr
}

// noted returns the first and the last time in the file, as soon as there is one.
func noted(t *testing.T, path string) (first, last int64) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(patience); time.Now().Before(limit); <-tick.C {
		text, _ := os.ReadFile(path)
		whole := text[:bytes.LastIndexByte(text, '\n')+1]
		if lines := strings.Fields(string(whole)); len(lines) > 0 {
			first, err := strconv.ParseInt(lines[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			last, err := strconv.ParseInt(lines[len(lines)-1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return first, last
		}
	}
	t.Fatalf("nothing was noted in %s", path)
	return 0, 0
}

// A leader that is cut off has stopped its command, even one that must be killed,
// before the next leader's command starts.
func TestCommandsNeverOverlap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr := natsServer(t, &server.Options{JetStream: true})
	var cut atomic.Bool
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")

	first, firstLog := lead(t, relay(t, addr, &cut), one)
	noted(t, one)
	lead(t, addr, two)
	cut.Store(true)
	begin := time.Now()

	err := first.Wait()
	if got := first.ProcessState.ExitCode(); got != exitLost {
		t.Errorf("the leader that was cut off ended with code %d (%v), want %d\n%s", got, err, exitLost, firstLog)
	}
	start, _ := noted(t, two)
	_, end := noted(t, one)
	t.Logf("the second command started %v after the cut, %v after the first one's last sign",
		time.Unix(0, start).Sub(begin).Round(time.Millisecond), time.Duration(start-end).Round(time.Millisecond))
	if start <= end {
		t.Errorf("two commands ran for %v", time.Duration(end-start))
	}
}

// No command is started under a term that has ended.
func TestNothingStartsUnderADeadTerm(t *testing.T) {
	addr := natsServer(t, &server.Options{JetStream: true})
	node, err := fabric.Join(t.Context(), fabric.Config{URL: "nats://" + addr, Cluster: "c"})
	if err != nil {
		t.Fatal(err)
	}
	defer node.Leave(context.WithoutCancel(t.Context()))
	e, err := election.New(node, election.Config{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	term, err := e.Campaign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := term.Resign(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := &app{log: slog.New(slog.DiscardHandler)}
	err = a.hold(t.Context(), &member{node: node}, &leadFlags{}, "x", term, []string{"no-such-command"}, time.Second)
	if got := exitCode(err); got != exitLost {
		t.Errorf("exit code %d (%v), want %d", got, err, exitLost)
	}
}

package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
)

// need skips the test where a program or /proc is missing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("without /proc nobody is found who left the group:", err)
	}
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip("the test needs a program:", err)
		}
	}
}

// sleeper returns the PID of the process with the arguments sleep and seconds.
func sleeper(t *testing.T, seconds string) string {
	t.Helper()
	for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		for pid := range processTable() {
			line, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			if string(line) == "sleep\x00"+seconds+"\x00" {
				return strconv.Itoa(pid)
			}
		}
	}
	t.Fatalf("no sleep %s", seconds)
	return ""
}

// What has left the command's group is stopped with it, when the leadership is lost, the
// command ends by itself, and a signal comes.
func TestStraysAreStopped(t *testing.T) {
	need(t, "timeout", "setsid", "bash")
	for i, tt := range []struct{ name, script string }{
		{"timeout", `timeout 1000 sleep $N; true`},
		{"job control", `bash -c 'set -m; sleep $N; true'; true`},
		{"background job", `exec bash -c 'set -m; sleep $N & wait'`},
		{"setsid", `setsid sleep $N & wait`},
		{"orphan", `(setsid sh -c 'sleep $N; true' &); sleep 998`},
		{"ignores TERM", `trap "" TERM; setsid sleep $N & wait`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seconds := strconv.Itoa(100000 + 1000*(os.Getpid()%1000) + i)
			term, lose := context.WithCancelCause(t.Context())
			p := start(t, nil, "sh", "-c", "N="+seconds+"; export N; "+tt.script)
			pid := sleeper(t, seconds)
			n, _ := strconv.Atoi(pid)
			t.Cleanup(func() { syscall.Kill(n, syscall.SIGKILL) })
			if group, err := syscall.Getpgid(n); err != nil || group == p.pid {
				t.Fatalf("sleep is in group %d, the command's (%v)", group, err)
			}
			lose(election.ErrLost)
			if got := exitCode(supervised(t, t.Context(), term, p, time.Minute, 300*time.Millisecond)); got != exitLost {
				t.Errorf("exit code %d, want %d", got, exitLost)
			}
			if alive(pid) {
				t.Error("sleep survived")
			}
		})
	}
}

// The same when the command has ended, and sleep is an orphan of a shell that had left.
func TestStraysAreLeftovers(t *testing.T) {
	need(t, "setsid")
	p := start(t, nil, "sh", "-c", `setsid sh -c 'sleep 1000 & echo $!' & wait; exit 3`)
	orphan := p.line(t)
	if got := exitCode(supervised(t, t.Context(), t.Context(), p, time.Minute, time.Minute)); got != 3 {
		t.Errorf("exit code %d, want 3", got)
	}
	if alive(orphan) {
		t.Error("the orphan survived")
	}
}

// An orphan is stopped with its own command, and no other; nor is a child of ours that no
// command has started.
func TestStraysOfOthersAreLeft(t *testing.T) {
	need(t, "setsid")
	const script = `setsid sh -c 'sleep 1000 & echo $!' & wait; echo ready; sleep 1000`
	one, two := start(t, nil, "sh", "-c", script), start(t, nil, "sh", "-c", script)
	first, second := one.line(t), two.line(t)
	one.line(t)
	two.line(t)
	other := exec.Command("sleep", "1000")
	other.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	one.stop(time.Minute)
	if alive(first) || !alive(second) || !alive(strconv.Itoa(other.Process.Pid)) {
		t.Errorf("alive are the orphan of the stopped command: %v, of the other: %v, and who is of none: %v",
			alive(first), alive(second), alive(strconv.Itoa(other.Process.Pid)))
	}
	two.stop(time.Minute)
	if alive(second) {
		t.Error("the second orphan survived")
	}
}

// While the command lives its orphans that end do not pile up.
func TestOrphansAreReaped(t *testing.T) {
	need(t)
	p := start(t, nil, "sh", "-c", `i=0; while [ $i -lt 50 ]; do (sh -c : &); (setsid sh -c : &); i=$((i+1)); done; echo done; sleep 1000`)
	p.line(t)
	ended := func() (n int) {
		self, own := os.Getpid(), syscall.Getpgrp()
		for _, e := range processTable() {
			if e.parent == self && e.ended && e.group != own {
				n++
			}
		}
		return n
	}
	limit := time.Now().Add(3 * time.Second)
	n := ended()
	for ; n > 0 && time.Now().Before(limit); n = ended() {
		time.Sleep(10 * time.Millisecond)
	}
	if n > 0 {
		t.Errorf("%d orphans have ended and nobody waits for them", n)
	}
	if !alive(strconv.Itoa(p.pid)) {
		t.Error("the command is gone")
	}
}

// A command that fabric-node may not signal is waited for, not in silence, and is a
// failure.
func TestRefusedKillIsAFailure(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can have a thread of another user")
	}
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	term, lose := context.WithCancelCause(t.Context())
	p := start(t, nil, "sh", "-c", "echo ready; exec sleep 3")
	p.log = log
	p.line(t)
	lose(election.ErrLost)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its user
		const nobody = 65534
		if _, _, err := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); err != 0 {
			done <- err
			return
		}
		a := &app{stderr: io.Discard, told: io.Discard, log: log}
		limit := 10 * time.Millisecond
		done <- a.supervise(t.Context(), p.child, watch{term: term, grace: limit, limit: limit, giveBack: func() {}})
	}()
	if err := <-done; exitCode(err) != exitWrapper {
		t.Errorf("got %v, exit code %d, want %d", err, exitCode(err), exitWrapper)
	}
	select {
	case <-p.exited:
	default:
		t.Error("supervise returned before the command had ended")
	}
	for _, sig := range []string{"terminated", "killed"} {
		if want := "signal=" + sig; !strings.Contains(text.String(), want) {
			t.Errorf("the log lacks %s: %s", want, &text)
		}
	}
}

// An index is given back when the strays of its worker are gone.
func TestStraysOfAWorkerAreStopped(t *testing.T) {
	need(t, "timeout")
	dir := t.TempDir()
	c, share := newCrew(t, dir, time.Minute)
	c.app.stdout, c.app.stderr = nil, nil // no pipe that the strays hold
	c.argv = []string{"sh", "-c", `timeout 1000 sh -c 'echo $$ >"$1/pid"; : >"$1/$FABRIC_WORKER_INDEX"; exec sleep 1000' sh "$1"; true`, "sh", dir}
	s := &balance.Share{First: 0, Workers: 1, Total: 1}
	share.Store(s)
	c.change(*s)
	started(t, dir, "0")
	pid, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	c.revoke(t.Context(), []int{0})
	if alive(strings.TrimSpace(string(pid))) {
		t.Error("the work goes on")
	}
}

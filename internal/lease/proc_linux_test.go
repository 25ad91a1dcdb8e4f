package lease

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// processOf names a process as it would name itself.
func processOf(t *testing.T, pid int) []string {
	t.Helper()
	id := strings.Fields(thisProcess())
	if len(id) != 5 {
		t.Fatalf("this process is %q", thisProcess())
	}
	start, err := startOf(strconv.Itoa(pid))
	if err != nil {
		t.Fatal(err)
	}
	id[3], id[4] = strconv.Itoa(pid), start
	return id
}

func begin(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func TestAwaitExit(t *testing.T) {
	cmd := begin(t)
	id := strings.Join(processOf(t, cmd.Process.Pid), " ")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- awaitExit(ctx, id) }()
	// Stopped is not ended.
	cmd.Process.Signal(syscall.SIGSTOP)
	short, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	if err := awaitExit(short, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("awaitExit of a stopped process = %v, want its context's cause", err)
	}
	select {
	case err := <-result:
		t.Fatalf("awaitExit of a stopped process = %v", err)
	default:
	}
	// Killed, and not waited for by its parent.
	cmd.Process.Kill()
	if err := <-result; err != nil {
		t.Errorf("awaitExit of a process that was killed = %v", err)
	}
	if err := awaitExit(ctx, id); err == nil {
		t.Error("awaitExit of a process that it has not seen alive: no error")
	}
	cmd.Wait()
	if err := awaitExit(ctx, id); err == nil {
		t.Error("awaitExit of a process that is gone: no error")
	}
}

// What is not surely the process is no proof, whatever happens to it.
func TestAwaitExitOfAnother(t *testing.T) {
	cmd := begin(t)
	right := processOf(t, cmd.Process.Pid)
	cmd.Process.Kill() // so that a wrong answer comes at once; it stays until waited for
	for i := range right {
		cmd := begin(t)
		wrong := processOf(t, cmd.Process.Pid)
		wrong[i] += "1"
		done := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			done <- awaitExit(ctx, strings.Join(wrong, " "))
		}()
		cmd.Process.Kill()
		if err := <-done; err == nil {
			t.Errorf("awaitExit of %q: no error", wrong)
		}
	}
	for _, id := range []string{"", "a b c", strings.Repeat("x ", 5)} {
		if err := awaitExit(t.Context(), id); err == nil {
			t.Errorf("awaitExit of %q: no error", id)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := awaitExit(ctx, strings.Join(processOf(t, os.Getpid()), " ")); !errors.Is(err, context.Canceled) {
		t.Errorf("awaitExit of itself with a context that has ended = %v", err)
	}
}

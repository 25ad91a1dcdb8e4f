package lease

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// pidfdOpen is the number of the system call on every architecture; pidfdNonblock and
// pollIn are the same on all that Go has, but for sparc.
const (
	pidfdOpen     = 434
	pidfdNonblock = syscall.O_NONBLOCK
	pollIn        = 1
)

// thisProcess names this process among all that the machine has run since it was
// started, for others of the same PID namespace: boot, namespaces of PIDs and of time,
// which shifts what is read of a start, PID and start. It is empty if that cannot be
// found out, or if /proc is not this process's.
var thisProcess = sync.OnceValue(func() string {
	pid := strconv.Itoa(os.Getpid())
	if self, err := os.Readlink("/proc/self"); err != nil || self != pid {
		return ""
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	pids, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	clock, err := os.Readlink("/proc/self/ns/time")
	if err != nil {
		return ""
	}
	start, err := startOf(pid)
	if err != nil {
		return ""
	}
	return strings.Join([]string{strings.TrimSpace(string(boot)), pids, clock, pid, start}, " ")
})

// startOf reads when the process began, in ticks since the machine's start.
func startOf(pid string) (string, error) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return "", err
	}
	// The second field is a name in parentheses that may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%s/stat has %d fields", pid, len(fields))
	}
	return fields[19], nil
}

// awaitExit returns nil when the process that id names has ended, which it must have
// seen alive. Nothing but the kernel's word counts: a process that is stopped has not
// ended. Any error proves nothing.
func awaitExit(ctx context.Context, id string) error {
	mine, other := strings.Fields(thisProcess()), strings.Fields(id)
	if len(mine) != 5 || len(other) != 5 || mine[0] != other[0] || mine[1] != other[1] || mine[2] != other[2] {
		return errors.New("not a process of this machine and namespace")
	}
	pid, err := strconv.Atoi(other[3])
	if err != nil {
		return err
	}
	fd, _, errno := syscall.Syscall(pidfdOpen, uintptr(pid), pidfdNonblock, 0)
	if errno != 0 {
		return fmt.Errorf("pidfd_open %d: %w", pid, errno)
	}
	f := os.NewFile(fd, "pidfd")
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	// While the process that was opened has not ended, the PID is its own, so what is
	// read by the PID is about it.
	start, err := startOf(other[3])
	if err != nil {
		return err
	}
	ended := true
	if err := conn.Control(func(fd uintptr) { ended = readable(fd) }); err != nil || ended || start != other[4] {
		return errors.New("the process was not seen alive")
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return err // it could not be waited for
	}
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	ended = false
	err = conn.Read(func(fd uintptr) bool {
		ended = readable(fd)
		return ended
	})
	if ended {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("wait for process %d: %w", pid, err)
}

// readable reports whether the process behind fd has ended.
func readable(fd uintptr) bool {
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: pollIn}
	var now syscall.Timespec
	n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno == 0 && n == 1 && p.revents&pollIn != 0
}

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// groupPoll is how often a process group is asked whether it is gone: no system
// call waits for that.
const groupPoll = 5 * time.Millisecond

const sigTerminate = syscall.SIGTERM

// A child is a running command in a process group of its own. Whatever the command
// starts belongs to the group, unless it leaves it (setsid, set -m, timeout), and the group
// is what is stopped and waited for: a shell that dies alone leaves its work running.
//
// On Linux the command also gets a KILL when fabric-node itself is killed; what the
// command started then survives, and only a cgroup (systemd, a container) helps.
type child struct {
	pid    int
	exited chan struct{} // closed when the command itself has ended
	code   int           // valid once exited is closed
	signal syscall.Signal
}

// lookCommand finds the program before anything is waited for.
func lookCommand(name string) error {
	_, err := exec.LookPath(name)
	return commandError(name, err)
}

func commandError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return &exitError{code: exitNoCommand, err: fmt.Errorf("command %q not found", name), hint: "is it in PATH? see: command -v " + name}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, exec.ErrDot), errors.Is(err, syscall.EISDIR):
		return &exitError{code: exitNotExecutable, err: fmt.Errorf("command %q cannot be executed: %w", name, err), hint: "see: ls -l " + name}
	}
	return &exitError{code: exitWrapper, err: fmt.Errorf("start %q: %w", name, err)}
}

// startChild starts argv with env in its own process group. A nil stdin is /dev/null.
func startChild(argv, env []string, stdin io.Reader, stdout, stderr io.Writer) (*child, error) {
	adoptOrphans()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	ownGroup(cmd)
	c := &child{exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the parent-death signal when the starting thread ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			c.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		c.code, c.signal = exitStatus(cmd, err)
		close(c.exited)
	}()
	if err := <-started; err != nil {
		return nil, commandError(argv[0], err)
	}
	return c, nil
}

// exitStatus is the exit code that a shell would show: the command's own, or
// 128+n after signal n.
func exitStatus(cmd *exec.Cmd, err error) (int, syscall.Signal) {
	if cmd.ProcessState == nil {
		return exitWrapper, 0
	}
	if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() {
		return exitSignal + int(st.Signal()), st.Signal()
	}
	code := cmd.ProcessState.ExitCode()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok && code == 0 {
		return exitWrapper, 0 // its output could not be passed on
	}
	return code, 0
}

// terminate asks the group to end. A stopped process must run to hear it.
func (c *child) terminate() {
	signalGroup(c.pid, sigTerminate)
	signalGroup(c.pid, sigContinue)
}

func (c *child) kill() { signalGroup(c.pid, syscall.SIGKILL) }

// waitGone returns when no process of the group is left, and reports true; or
// false when limit comes first. A nil limit never does.
func (c *child) waitGone(limit <-chan time.Time, lost <-chan struct{}) bool {
	tick := time.NewTicker(groupPoll)
	defer tick.Stop()
	exited := c.exited
	for {
		if exited == nil && groupGone(c.pid) {
			return true
		}
		select {
		case <-exited:
			exited = nil
		case <-tick.C:
		case <-limit:
			return false
		case <-lost:
			return false
		}
	}
}

// stop ends the group: TERM, KILL after grace. It returns when the group is gone.
func (c *child) stop(grace time.Duration) {
	c.terminate()
	limit := time.NewTimer(grace)
	defer limit.Stop()
	if !c.waitGone(limit.C, nil) {
		c.kill()
		c.waitGone(nil, nil)
	}
}

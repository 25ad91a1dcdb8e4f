package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// groupPoll is how often a process group is asked whether it is gone: no system
// call waits for that. Once it is, its strays are looked for each strayPoll.
const (
	groupPoll = 5 * time.Millisecond
	strayPoll = 20 * time.Millisecond
)

// firstReminder is how long after the begin of a wait it is said what is waited for;
// then again after twice as long, and so on.
const firstReminder = 5 * time.Second

// sweeps is how often a signal looks for strays that came while it was sent.
const sweeps = 8

// markVariable names each command in the environment of all that it starts.
const markVariable = "FABRIC_COMMAND"

const sigTerminate = syscall.SIGTERM

// A child is a running command in a process group of its own. Whatever the command
// starts belongs to the group, unless it leaves it (setsid, set -m, timeout), and the group
// is what is stopped and waited for: a shell that dies alone leaves its work running.
// On Linux so are the groups of those that have left it, its strays.
//
// On Linux the command also gets a KILL when fabric-node itself is killed; what the
// command started then survives, and only a cgroup (systemd, a container) helps.
type child struct {
	pid    int
	exited chan struct{} // closed when the command itself has ended
	code   int           // valid once exited is closed
	signal syscall.Signal
	mark   string // in markVariable
	log    *slog.Logger

	mu      sync.Mutex     // guards the fields below
	groups  map[int]bool   // where the command or who descends from it was seen
	last    syscall.Signal // sent to all
	told    map[int]bool   // the groups that last was sent to
	refused error          // why KILL could not be sent
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
func startChild(log *slog.Logger, argv, env []string, stdin io.Reader, stdout, stderr io.Writer) (*child, error) {
	adoptOrphans()
	c := &child{exited: make(chan struct{}), mark: "/" + rand.Text(), log: log}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(slices.Clip(env), markVariable+"="+os.Getenv(markVariable)+c.mark)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	ownGroup(cmd)
	started := make(chan error)
	go func() {
		// The kernel sends the parent-death signal when the starting thread ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := startWaited(func() (int, error) {
			if err := cmd.Start(); err != nil {
				return 0, err
			}
			c.pid = cmd.Process.Pid
			c.groups = map[int]bool{c.pid: true}
			return c.pid, nil
		})
		started <- err
		if err != nil {
			return
		}
		stop := make(chan struct{})
		var reaper sync.WaitGroup
		reaper.Go(func() { reapOrphans(stop) })
		err = cmd.Wait()
		forgetWaited(c.pid)
		close(stop)
		reaper.Wait()
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

// terminate asks the group and its strays to end.
func (c *child) terminate() { c.tell(sigTerminate) }

func (c *child) kill() { c.tell(syscall.SIGKILL) }

// tell sends sig to the group, and to the strays until no more are found. Who comes later
// gets it from gone.
func (c *child) tell(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	again := c.last != 0
	c.last, c.told = sig, map[int]bool{}
	if again { // the strays have been seen: the group's end does not hide them
		c.send([]int{c.pid})
	}
	groups := append(c.strays(), c.pid)
	for range sweeps {
		if !c.send(groups) {
			return
		}
		groups = c.strays()
	}
}

// send sends the last signal to those groups that have not had it, and reports whether
// there were any. c.mu is held.
func (c *child) send(groups []int) (news bool) {
	for _, g := range groups {
		if c.told[g] || c.last == 0 {
			continue
		}
		news, c.told[g] = true, true
		err := signalGroup(g, c.last)
		if err != nil {
			c.log.Error("a process of the command cannot be stopped: end it as its user or as root", "group", g, "signal", c.last, "err", err)
		}
		switch c.last {
		case sigTerminate:
			signalGroup(g, sigContinue) // a stopped process must run to hear it
		case syscall.SIGKILL:
			c.refused = cmp.Or(c.refused, err)
		}
	}
	return news
}

// notify sends sig to the group alone.
func (c *child) notify(sig syscall.Signal) {
	if err := signalGroup(c.pid, sig); err != nil {
		c.log.Error("the command does not get its signal", "group", c.pid, "signal", sig, "err", err)
	}
}

// gone reports whether no process of the group is left, and no stray. It must not be
// called before the command itself has ended.
func (c *child) gone() bool { return groupGone(c.pid) && c.strayed() == 0 }

// strayed returns how many groups of strays there are, and sends them the last signal.
func (c *child) strayed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 2 { // who loses its parent during one look is found by the next
		if groups := c.strays(); len(groups) > 0 {
			c.send(groups)
			return len(groups)
		}
	}
	return 0
}

// waitGone returns when no process of the group is left, and no stray, and reports true;
// or false when limit comes first. A nil limit never does.
func (c *child) waitGone(limit <-chan time.Time, lost <-chan struct{}) bool {
	tick := time.NewTicker(groupPoll)
	defer tick.Stop()
	pause := firstReminder
	reminder := time.NewTimer(pause)
	defer reminder.Stop()
	exited := c.exited
	for {
		if exited == nil && groupGone(c.pid) {
			if c.strayed() == 0 {
				return true
			}
			tick.Reset(strayPoll)
		}
		select {
		case <-exited:
			exited = nil
		case <-tick.C:
		case <-reminder.C:
			c.remind()
			pause *= 2
			reminder.Reset(pause)
		case <-limit:
			return false
		case <-lost:
			return false
		}
	}
}

// remind says what is waited for, and repeats a KILL: its first may have reached a part of
// a group, and only the next says that it cannot reach the rest.
func (c *child) remind() {
	c.mu.Lock()
	groups, last := append(c.strays(), c.pid), c.last
	c.mu.Unlock()
	c.log.Warn("waiting for the command to end, see: pgrep -a -g GROUP", "groups", groups, "signal", last)
	if last == syscall.SIGKILL {
		c.kill()
	}
}

// stop ends the group and its strays: TERM, KILL after grace. It returns when all are gone.
func (c *child) stop(grace time.Duration) {
	c.terminate()
	limit := time.NewTimer(grace)
	defer limit.Stop()
	if !c.waitGone(limit.C, nil) {
		c.end()
	}
}

// end kills the group and its strays, and returns when all are gone.
func (c *child) end() {
	c.kill()
	c.waitGone(nil, nil)
}

// refusal is why the command has not been stopped but has ended by itself, or nil.
func (c *child) refusal() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused == nil {
		return nil
	}
	return &exitError{code: exitWrapper, err: fmt.Errorf("stop the command: %w", c.refused), hint: "run fabric-node as the command's user, or as root"}
}

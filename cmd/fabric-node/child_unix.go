//go:build unix

package main

import (
	"errors"
	"os/exec"
	"syscall"
)

const sigContinue = syscall.SIGCONT

// signalNames are the signals that may tell a command of a loss without ending it.
var signalNames = map[string]syscall.Signal{
	"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "WINCH": syscall.SIGWINCH,
}

func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
}

// signalGroup sends sig to whoever of the group there is.
func signalGroup(pgid int, sig syscall.Signal) error {
	if err := syscall.Kill(-pgid, sig); !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// groupGone reports whether the process group has no process left. Orphans of the
// group may have become our children, which count until somebody has waited for
// them. It must not be called before the group's first process has been waited for.
func groupGone(pgid int) bool {
	for {
		pid, err := syscall.Wait4(-pgid, nil, syscall.WNOHANG, nil)
		if err != nil && !errors.Is(err, syscall.EINTR) || pid == 0 {
			break
		}
	}
	return errors.Is(syscall.Kill(-pgid, 0), syscall.ESRCH)
}

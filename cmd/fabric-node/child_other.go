//go:build !unix

package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// Without process groups the command alone is stopped, by killing it.

const sigContinue = syscall.Signal(-1)

// signalNames is empty: no signal can be sent but the one that kills.
var signalNames map[string]syscall.Signal

func ownGroup(*exec.Cmd) {}

func signalGroup(pid int, sig syscall.Signal) error {
	p, err := os.FindProcess(pid)
	if err != nil || sig == sigContinue {
		return nil // it is gone
	}
	if err := p.Kill(); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func groupGone(int) bool { return true }

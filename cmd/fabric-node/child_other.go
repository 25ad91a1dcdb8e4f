//go:build !unix

package main

import (
	"os"
	"os/exec"
	"syscall"
)

// Without process groups the command alone is stopped, by killing it.

const sigContinue = syscall.Signal(-1)

// signalNames is empty: no signal can be sent but the one that kills.
var signalNames map[string]syscall.Signal

func ownGroup(*exec.Cmd) {}

func adoptOrphans() {}

func signalGroup(pid int, sig syscall.Signal) {
	if p, err := os.FindProcess(pid); err == nil && sig != sigContinue {
		p.Kill()
	}
}

func groupGone(int) bool { return true }

//go:build !linux

package natstest

import "os/exec"

// dieWithParent does nothing: this system cannot tell a process about the end of
// its parent.
func dieWithParent(*exec.Cmd) {}

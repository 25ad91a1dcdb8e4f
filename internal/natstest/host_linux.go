package natstest

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the kernel kill a process when this one ends without having
// stopped it, as a test that runs out of time does.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

//go:build unix

package natstest

import (
	"os"
	"syscall"
)

func pauseProcess(p *os.Process, stop bool) error {
	if stop {
		return p.Signal(syscall.SIGSTOP)
	}
	return p.Signal(syscall.SIGCONT)
}

// lameDuck asks nats-server to hand over what it leads and to end.
func lameDuck(p *os.Process) error { return p.Signal(syscall.SIGUSR2) }

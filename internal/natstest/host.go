package natstest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// inProcess is a host in this process.
type inProcess struct {
	conf string
	log  *log
	srv  *server.Server
}

func (h *inProcess) start() error {
	opts, err := server.ProcessConfigFile(h.conf)
	if err != nil {
		return err
	}
	opts.NoSigs = true
	h.srv, err = startServer(opts, h.log)
	return err
}

// startServer starts a server in this process. It tries again while its address is in use:
// a process that is being started elsewhere in this one has the listeners of a server that
// has just ended, for the moment between fork and exec.
func startServer(opts *server.Options, l *log) (*server.Server, error) {
	for deadline := time.Now().Add(readyTimeout); ; {
		srv, err := server.NewServer(opts.Clone())
		if err != nil {
			return nil, err
		}
		srv.SetLoggerV2(l, false, false, false)
		taken := l.count("address already in use")
		srv.Start()
		ready, late := false, false
		for !ready && !late && l.count("address already in use") == taken {
			ready, late = srv.ReadyForConnections(50*time.Millisecond), time.Now().After(deadline)
		}
		if ready {
			return srv, nil
		}
		srv.Shutdown()
		srv.WaitForShutdown()
		if late {
			return nil, fmt.Errorf("server not ready after %v:\n%s", readyTimeout, l.tail(10))
		}
	}
}

func (h *inProcess) stop() {
	h.srv.Shutdown()
	h.srv.WaitForShutdown()
}

func (h *inProcess) kill()        { h.stop() }
func (h *inProcess) logs() string { return h.log.String() }

// process is a host in a process of its own.
type process struct {
	bin, conf, addr, log string

	cmd  *exec.Cmd
	done chan struct{} // closed when the process is gone
}

func (h *process) start() error {
	out, err := os.OpenFile(h.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	h.cmd = exec.Command(h.bin, "-c", h.conf)
	h.cmd.Stdout, h.cmd.Stderr = out, out
	h.done = make(chan struct{})
	dieWithParent(h.cmd)
	started := make(chan error, 1)
	go func() { // waited for by stop and kill, through done
		defer close(h.done)
		defer out.Close()
		// The kernel takes the end of this thread for the end of the parent.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := h.cmd.Start()
		started <- err
		if err == nil {
			h.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	if err := h.ready(); err != nil {
		h.kill()
		return err
	}
	return nil
}

// ready waits until the process accepts connections.
func (h *process) ready() error {
	deadline := time.NewTimer(readyTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("tcp", h.addr); err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-h.done:
			return fmt.Errorf("nats-server ended: %v\n%s", h.cmd.ProcessState, tail(h.logs(), 10))
		case <-deadline.C:
			return fmt.Errorf("nats-server not ready after %v", readyTimeout)
		}
	}
}

func (h *process) stop() {
	if h.cmd.Process.Signal(os.Interrupt) != nil { // Windows has none
		h.cmd.Process.Kill()
	}
	timer := time.NewTimer(readyTimeout)
	defer timer.Stop()
	select {
	case <-h.done:
	case <-timer.C:
		h.kill()
	}
}

// pause stops the process as SIGSTOP does, or lets it go on.
func (h *process) pause(stop bool) error { return pauseProcess(h.cmd.Process, stop) }

func (h *process) kill() {
	h.cmd.Process.Kill()
	<-h.done
}

func (h *process) logs() string {
	b, err := os.ReadFile(h.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// binaries are the nats-servers built for the tests that run now, by version.
var binaries struct {
	mu    sync.Mutex // guards the fields below
	users int
	dir   string
	built map[string]string
}

// serverBinary returns the path of a nats-server, built on first use and removed when
// the last test that uses one ends. Version "" is what this module requires, any other
// is fetched. The compiler's cache makes the next build one of linking only.
func serverBinary(t testing.TB, version string) (string, error) {
	b := &binaries
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users == 0 {
		dir, err := os.MkdirTemp("", "natstest-")
		if err != nil {
			return "", err
		}
		b.dir, b.built = dir, map[string]string{}
	}
	b.users++
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.users--; b.users == 0 {
			if err := os.RemoveAll(b.dir); err != nil {
				t.Errorf("natstest: %v", err)
			}
		}
	})
	if path := b.built[version]; path != "" {
		return path, nil
	}
	dir := filepath.Join(b.dir, "v"+version)
	path := filepath.Join(dir, "nats-server")
	if runtime.GOOS == "windows" {
		path += ".exe"
	}
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "github.com/nats-io/nats-server/v2")
	if version != "" {
		cmd = exec.Command("go", "install", "-ldflags=-s -w", "github.com/nats-io/nats-server/v2@v"+version)
		cmd.Env = append(os.Environ(), "GOBIN="+dir)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, bytes.TrimSpace(out))
	}
	b.built[version] = path
	return path, nil
}

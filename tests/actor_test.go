//go:build unix

package tests

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

// A part is what this program plays when a test starts it as another process.
type part struct {
	Role    string // one of roles
	URL     string
	PID     fabric.PID
	Lease   time.Duration // default fabric.DefaultLease
	Mailbox bool
	Count   int    // of messages
	Size    int    // of one, in bytes
	Rate    int    // of messages of mode Reliable, a second
	Lanes   int    // of messages of mode Acked: each has one under way
	Mode    string // of messages that are one by one
	History string // the file to write it to
}

// roles are what parts play. stop is closed when the test wants the part to end.
var roles = map[string]func(ctx context.Context, n *fabric.Node, p part, stop <-chan struct{}) error{
	"large-sender":   sendLarge,
	"large-receiver": receiveLarge,
	"talker":         talk,
	"listener":       hear,
	"sender-of-one":  sendOne,
}

const partVariable = "NATSFABRIC_TEST_PART"

// play plays the part that the environment gives this process, if any.
func play() (played bool, err error) {
	text := os.Getenv(partVariable)
	if text == "" {
		return false, nil
	}
	var p part
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return true, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	stop := make(chan struct{})
	go func() { // ends with the process, which is soon after its input does
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	n, err := fabric.Join(ctx, fabric.Config{
		Cluster: "t", PID: p.PID, URL: p.URL, Lease: p.Lease, Mailbox: fabric.Mailbox{On: p.Mailbox},
	})
	if err != nil {
		return true, err
	}
	say("joined", 1)
	err = roles[p.Role](ctx, n, p, stop)
	if n.Context().Err() == nil { // it may have drained, which leaves
		err = errors.Join(err, n.Leave(ctx))
	}
	return true, err
}

// say tells the test a value of this process.
func say(key string, value int) { fmt.Println(key, value) }

// An actor is a process that plays a part, and what it said.
type actor struct {
	t     *testing.T
	part  part
	cmd   *exec.Cmd
	stdin io.Closer

	mu    sync.Mutex // guards the fields below
	said  map[string]int
	more  chan struct{} // closed when it says something, or ends
	ended bool
}

// enact starts this program again, to play p. It is killed at the end of the test if it
// still runs.
func enact(t *testing.T, p part) *actor {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	a := &actor{t: t, part: p, cmd: exec.Command(os.Args[0]), said: map[string]int{}, more: make(chan struct{})}
	a.cmd.Stderr = new(bytes.Buffer)
	a.cmd.Env = append(os.Environ(), partVariable+"="+string(text))
	if a.stdin, err = a.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var key string
			var value int
			if n, _ := fmt.Sscan(lines.Text(), &key, &value); n == 2 {
				a.update(func() { a.said[key] = value })
			}
		}
		_ = a.cmd.Wait() // how it ended is looked up in ProcessState
		a.update(func() { a.ended = true })
	}()
	t.Cleanup(func() {
		_ = a.cmd.Process.Signal(syscall.SIGCONT) // fails if it has ended
		_ = a.cmd.Process.Kill()
		<-done
		if text := a.stderr(); t.Failed() && text != "" {
			t.Logf("%s: %s", p.PID, text)
		}
	})
	return a
}

func (a *actor) update(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.more)
	a.more = make(chan struct{})
}

// stderr may be called when the process has ended.
func (a *actor) stderr() string { return strings.TrimSpace(a.cmd.Stderr.(*bytes.Buffer).String()) }

// value is what the process said last of a key.
func (a *actor) value(key string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.said[key]
}

// await waits until ok accepts what the process says of a key.
func (a *actor) await(key string, ok func(int) bool) int {
	a.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		a.mu.Lock()
		value, more, ended := a.said[key], a.more, a.ended
		a.mu.Unlock()
		if ok(value) {
			return value
		}
		if ended {
			a.t.Fatalf("%s ended with %s %d: %v %s", a.part.PID, key, value, a.cmd.ProcessState, a.stderr())
		}
		select {
		case <-more:
		case <-timer.C:
			_ = a.cmd.Process.Signal(syscall.SIGQUIT) // for the stacks of its goroutines
			a.gone()
			a.t.Fatalf("%s still says %s %d after %v: %s", a.part.PID, key, value, patience, a.stderr())
		}
	}
}

// atLeast accepts values from n.
func atLeast(n int) func(int) bool { return func(v int) bool { return v >= n } }

// end tells the process to come to its end, and waits until it has. It must have no
// errors.
func (a *actor) end() {
	a.t.Helper()
	_ = a.stdin.Close() // fails if it has ended
	a.wait()
}

// wait waits for the end of the process. It must have no errors.
func (a *actor) wait() {
	a.t.Helper()
	a.gone()
	if !a.cmd.ProcessState.Success() {
		a.t.Errorf("%s: %v: %s", a.part.PID, a.cmd.ProcessState, a.stderr())
	}
}

// gone waits for the end of the process, whatever it is.
func (a *actor) gone() {
	a.t.Helper()
	timer := time.NewTimer(30 * time.Minute)
	defer timer.Stop()
	for {
		a.mu.Lock()
		more, ended := a.more, a.ended
		a.mu.Unlock()
		if ended {
			return
		}
		select {
		case <-more:
		case <-timer.C:
			a.t.Fatalf("%s does not end", a.part.PID)
		}
	}
}

// signal sends the process a signal.
func (a *actor) signal(sig syscall.Signal) {
	a.t.Helper()
	if err := a.cmd.Process.Signal(sig); err != nil {
		a.t.Fatal(err)
	}
}

// kill ends the process without warning.
func (a *actor) kill() {
	a.t.Helper()
	a.signal(syscall.SIGKILL)
	a.gone()
}

//go:build unix

package tests

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// program is the fabric-node binary, built once per run.
var program struct {
	once sync.Once
	path string
	err  error
}

// fabricNode returns the path of the program. The compiler's cache makes the build
// one of linking only, mostly.
func fabricNode(t *testing.T) string {
	t.Helper()
	program.once.Do(func() {
		dir, err := os.MkdirTemp("", "fabric-node-")
		if err != nil {
			program.err = err
			return
		}
		program.path = filepath.Join(dir, "fabric-node")
		cmd := exec.Command("go", "build", "-o", program.path, "./cmd/fabric-node")
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			program.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if program.err != nil {
		t.Fatal(program.err)
	}
	return program.path
}

func TestMain(m *testing.M) {
	if played, err := play(); played {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	natstest.Patient()
	code := m.Run()
	if program.path != "" {
		if err := os.RemoveAll(filepath.Dir(program.path)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// A process is one fabric-node, and the events that it printed.
type process struct {
	t   *testing.T
	cmd *exec.Cmd

	mu     sync.Mutex // guards the fields below
	events []event
	more   chan struct{} // closed at the next event, or the end
	ended  bool
	stderr bytes.Buffer
}

// An event is what the tests need of an ndjson line.
type event struct {
	Type        string     `json:"type"`
	PID         fabric.PID `json:"pid"`
	Name        string     `json:"name"`
	Term        uint64     `json:"term"`
	Token       uint64     `json:"token"`
	Incarnation uint64     `json:"incarnation"`
	First       int        `json:"first"`
	Total       int        `json:"total"`
}

// launch starts the program. It is killed at the end of the test if it still runs.
func launch(t *testing.T, url string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(fabricNode(t), args...), more: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "FABRIC_SERVER="+url, "FABRIC_CLUSTER=t", "FABRIC_TTL=1s")
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				p.add(e, false)
			}
		}
		_ = p.cmd.Wait() // how it ended is looked up in ProcessState
		p.add(event{}, true)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT) // fails if it has ended
		_ = p.cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("%v: %v\n%s", args, p.events, p.stderr.String())
		}
	})
	return p
}

func (p *process) add(e event, end bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if end {
		p.ended = true
	} else {
		p.events = append(p.events, e)
	}
	close(p.more)
	p.more = make(chan struct{})
}

// await returns the first event after the first skip ones that ok accepts.
func (p *process) await(what string, skip int, ok func(event) bool) event {
	p.t.Helper()
	ctx := within(p.t, patience)
	for {
		p.mu.Lock()
		events, more, ended := p.events, p.more, p.ended
		p.mu.Unlock()
		for _, e := range events[min(skip, len(events)):] {
			if ok(e) {
				return e
			}
		}
		if ended {
			p.t.Fatalf("ended before: %s", what)
		}
		select {
		case <-more:
		case <-ctx.Done():
			p.t.Fatalf("never: %s", what)
		}
	}
}

// last returns the last event of a type, an empty one if there was none.
func (p *process) last(typ string) (last event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if e.Type == typ {
			last = e
		}
	}
	return last
}

// seen is how many events there are so far.
func (p *process) seen() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.events)
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// over reports whether it has ended.
func (p *process) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// wait returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	ctx := within(p.t, patience)
	for {
		p.mu.Lock()
		more, ended := p.more, p.ended
		p.mu.Unlock()
		if ended {
			return p.cmd.ProcessState.ExitCode()
		}
		select {
		case <-more:
		case <-ctx.Done():
			p.t.Fatal("does not end")
		}
	}
}

// leads accepts the event that names a leader other than those given.
func leads(not ...fabric.PID) func(event) bool {
	return func(e event) bool {
		if slices.Contains(not, e.PID) {
			return false
		}
		return e.Type == "leader" && e.PID != ""
	}
}

// trio runs three members that stand for one election, and returns who leads.
func trio(t *testing.T, url string) (ps map[fabric.PID]*process, leader event) {
	t.Helper()
	ps = map[fabric.PID]*process{}
	for i := range 3 {
		pid := number(i)
		ps[pid] = launch(t, url, "run", "-i", string(pid), "--elect", "x", "-n", "2", "-o", "ndjson")
	}
	for pid, p := range ps {
		p.await("joined", 0, func(e event) bool { return e.Type == "joined" && e.PID == pid })
		p.await("balanced over all", 0, func(e event) bool { return e.Type == "balanced" && e.Total == 6 && e.First >= 0 })
	}
	// A busy machine may have let the first term run out already.
	last := map[fabric.PID]event{}
	for ctx := within(t, patience); ; {
		for pid, p := range ps {
			last[pid] = p.last("leader")
		}
		if leader = last["1"]; leader.PID != "" && last["0"].Token == leader.Token && last["2"].Token == leader.Token {
			return ps, leader
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the three never agree on a leader: %+v", last)
		}
	}
}

// TestProcessKilled kills the leader of three processes with SIGKILL: the others
// see it fail, elect another, and share its indices.
func TestProcessKilled(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	ps, first := trio(t, s.URL())
	watch := join(t, s.URL(), "watch", func(c *fabric.Config) { c.Lease = time.Second; c.Passive = true })
	began, seen := time.Now(), map[fabric.PID]int{}
	for pid, p := range ps {
		seen[pid] = p.seen()
	}
	ps[first.PID].signal(syscall.SIGKILL)
	for pid, p := range ps {
		if pid == first.PID {
			continue
		}
		e := p.await("another leader", seen[pid], leads(first.PID))
		if e.Term <= first.Term || e.Token <= first.Token {
			t.Errorf("%+v leads after %+v", e, first)
		}
		p.await("balanced over two", seen[pid], func(e event) bool { return e.Type == "balanced" && e.Total == 4 })
	}
	t.Logf("another leader and other indices %v after the kill, with a lease of 1s", time.Since(began))
	for c, err := range watch.Changes(within(t, patience)) {
		if err != nil {
			t.Fatal(err)
		}
		if c.Kind == fabric.Synced && len(watch.View().Members) == 2 || c.Kind == fabric.Failed && c.Member.PID == first.PID {
			break
		}
		if c.Kind == fabric.Left {
			t.Errorf("%s left, as %s sees it, and was killed", c.Member.PID, watch.PID())
		}
	}
}

// TestProcessStopped stops the leader for more than its lease, and lets it go on: it
// finds its term ended, and follows.
func TestProcessStopped(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	ps, first := trio(t, s.URL())
	stopped, began := ps[first.PID], map[fabric.PID]int{}
	for pid, p := range ps {
		began[pid] = p.seen()
	}
	stopped.signal(syscall.SIGSTOP)
	for pid, p := range ps {
		if pid != first.PID {
			p.await("another leader", began[pid], leads(first.PID))
		}
	}
	before, seen := stopped.last("joined"), stopped.seen()
	stopped.signal(syscall.SIGCONT)
	e := stopped.await("joined again", seen, func(e event) bool { return e.Type == "joined" })
	if e.Incarnation <= before.Incarnation {
		t.Errorf("joined again as incarnation %d, was %d", e.Incarnation, before.Incarnation)
	}
	stopped.await("the other's leadership", seen, leads(first.PID))
	stopped.await("an index again", seen, func(e event) bool { return e.Type == "balanced" && e.First >= 0 && e.Total == 6 })
}

// TestProcessTerminated ends the leader with SIGTERM under load: the work that it
// wraps takes its time to stop, and the next leader's begins only after that.
func TestProcessTerminated(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	log := filepath.Join(t.TempDir(), "log")
	// The work says that it began, and half a second after TERM that it has ended.
	const work = `echo "begin $FABRIC_PID $FABRIC_LEADER_TERM $(date +%s%N)" >> "$0"
trap 'sleep 0.5; echo "end $FABRIC_PID $FABRIC_LEADER_TERM $(date +%s%N)" >> "$0"; exit 0' TERM
while :; do sleep 0.05; done`
	ps := map[string]*process{}
	for i := range 3 {
		pid := strconv.Itoa(i)
		ps[pid] = launch(t, s.URL(), "lead", "-i", pid, "--ttl", "10s", "x", "--", "sh", "-c", work, log)
	}
	stop, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	load := joinMany(t, s.URL(), 2, func(c *fabric.Config) { c.Env = "load" })
	wg.Go(func() { // keeps the server busy
		for stop.Err() == nil {
			if load[0].Send(stop, "1", make([]byte, 1024)) != nil || load[0].Flush(stop) != nil {
				return
			}
		}
	})
	wg.Go(func() {
		for range load[1].Messages(stop) {
		}
	})
	var lines []string
	for round := 1; round <= 3; round++ {
		lines = awaitLines(t, log, 2*round-1)
		leader := strings.Fields(lines[len(lines)-1])[1]
		ps[leader].signal(syscall.SIGTERM)
		if code := ps[leader].wait(); code != 0 {
			t.Errorf("%s exits with %d, want 0", leader, code)
		}
	}
	lines = awaitLines(t, log, 6)
	var last int64
	for i, line := range lines {
		f := strings.Fields(line)
		at, err := strconv.ParseInt(f[len(f)-1], 10, 64)
		if want := []string{"begin", "end"}[i%2]; err != nil || f[0] != want || at < last {
			t.Errorf("line %d is %q, want a later %s: %v", i, line, want, err)
		}
		last = at
	}
	t.Logf("%s", strings.Join(lines, "; "))
}

// awaitLines returns the lines of a file once there are so many.
func awaitLines(t *testing.T, path string, count int) []string {
	t.Helper()
	ctx := within(t, patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		data, err := os.ReadFile(path)
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		if err == nil && len(lines) >= count && lines[0] != "" {
			return lines
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d lines, want %d: %v", len(lines), count, lines)
		}
	}
}

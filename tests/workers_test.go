//go:build linux

package tests

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// workerEnv has the test binary be a worker under fabric-node balance, that writes
// into the file which the variable names that it is there, again and again.
const workerEnv = "NATSFABRIC_WORKER_LOG"

// beatEvery is how often a worker says that it is there.
const beatEvery = 10 * time.Millisecond

func init() {
	if path := os.Getenv(workerEnv); path != "" && os.Getenv("FABRIC_WORKER_INDEX") != "" {
		if err := beWorker(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

func beWorker(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	tick := time.NewTicker(beatEvery)
	for {
		_, err := fmt.Fprintf(f, "%s %s %s %d %d\n", os.Getenv("FABRIC_WORKER_INDEX"), os.Getenv("FABRIC_WORKER_EPOCH"),
			os.Getenv("FABRIC_PID"), os.Getpid(), sharedClock())
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-term:
			return nil
		}
	}
}

// A shift is the time in which one worker process had one index.
type shift struct {
	index       int
	epoch       uint64
	pid         string
	os          int
	first, last time.Duration
}

// A shiftLog is what the workers have written so far.
type shiftLog struct {
	t      *testing.T
	path   string
	read   int64
	shifts map[[2]int]*shift // by index and process
	// late are signs of workers that had been stopped: a moment after they go on, and
	// before they end. Nothing but the epoch keeps these from doing harm.
	late []shift
}

// stopped is for how long a worker that is not stopped is never silent.
const stopped = 1500 * time.Millisecond

func (l *shiftLog) update() {
	l.t.Helper()
	f, err := os.Open(l.path)
	if os.IsNotExist(err) {
		return
	}
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, l.read, 1<<40))
	if err != nil {
		l.t.Fatal(err)
	}
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	l.read += int64(len(data))
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		var s shift
		if _, err := fmt.Sscan(lines.Text(), &s.index, &s.epoch, &s.pid, &s.os, &s.last); err != nil {
			l.t.Fatalf("%q: %v", lines.Text(), err)
		}
		s.first = s.last
		switch old := l.shifts[[2]int{s.index, s.os}]; {
		case old != nil && s.last-old.last > stopped:
			s.first = old.last
			l.late = append(l.late, s)
		case old != nil:
			old.last = s.last
		default:
			l.shifts[[2]int{s.index, s.os}] = &s
		}
	}
}

// onShift counts the members with a worker that was heard lately, and after since, and
// says whether they have the indices from 0 on, each one.
func (l *shiftLog) onShift(since time.Duration) (members int, complete bool) {
	l.update()
	now := time.Duration(sharedClock())
	seen, pids := map[int]bool{}, map[string]bool{}
	for _, s := range l.shifts {
		if s.last > since && now-s.last < 20*beatEvery {
			seen[s.index], pids[s.pid] = true, true
		}
	}
	for i := range len(pids) {
		if !seen[i] {
			return len(pids), false
		}
	}
	return len(pids), len(seen) == len(pids)
}

// overlaps returns how many pairs of workers had one index at one time, and for how
// long at most.
func (l *shiftLog) overlaps() (count int, longest time.Duration, text []string) {
	l.update()
	byIndex := map[int][]*shift{}
	for _, s := range l.shifts {
		for _, o := range byIndex[s.index] {
			if d := min(s.last, o.last) - max(s.first, o.first); d > 0 {
				count++
				longest = max(longest, d)
				text = append(text, fmt.Sprintf("%+v and %+v for %v", *s, *o, d))
			}
		}
		byIndex[s.index] = append(byIndex[s.index], s)
	}
	return count, longest, text
}

// unfenced returns the late signs that the epoch does not tell from the new holder's. One
// who had the index all the time was silent for another reason.
func (l *shiftLog) unfenced() (all []shift) {
	for _, s := range l.late {
		fenced, another := false, false
		for _, o := range l.shifts {
			if o.index == s.index && o.os != s.os && o.first < s.last {
				another = another || o.last > s.first
				fenced = fenced || o.epoch > s.epoch
			}
		}
		if another && !fenced {
			all = append(all, s)
		}
	}
	return all
}

// A crew is processes of fabric-node balance, each with one worker.
type crew struct {
	t       *testing.T
	url     string
	barrier string
	log     *shiftLog
	members []*process
}

func (c *crew) start(i int) {
	c.members[i] = launch(c.t, c.url, "balance", "-i", fmt.Sprint("m", i), "--ttl", "2s", "--timeout", "30s",
		"--barrier="+c.barrier, "--", "env", workerEnv+"="+c.log.path, os.Args[0])
}

// complete waits until a worker of each member has an index, and each index a worker.
// Who was heard before it is called counts only when heard again: it may be dead.
func (c *crew) complete(what string) {
	c.t.Helper()
	tick := time.NewTicker(5 * beatEvery)
	defer tick.Stop()
	began, since := time.Now(), time.Duration(sharedClock())
	members, all := 0, false
	for time.Since(began) < patience {
		if members, all = c.log.onShift(since); all && members == len(c.members) {
			return
		}
		<-tick.C
	}
	c.t.Fatalf("%s: after %v %d of %d members have a worker, all indices: %v", what, patience, members, len(c.members), all)
}

// kill kills n members at once, and starts them again under their PIDs.
func (c *crew) kill(r *rand.Rand, n int) {
	some := r.Perm(len(c.members))[:n]
	for _, i := range some {
		c.members[i].signal(syscall.SIGKILL)
	}
	for _, i := range some {
		c.members[i].wait()
		c.start(i)
	}
	c.complete(fmt.Sprint("killed ", some))
}

// freeze stops a member that has not the last index, and its worker, for longer than its lease, and lets the member
// go on: it must end its worker, which is still stopped, before it starts another.
func (c *crew) freeze(i int) {
	p := c.members[i].cmd.Process.Pid
	children, err := exec.Command("pgrep", "-P", fmt.Sprint(p)).Output()
	if err != nil {
		c.t.Fatalf("the worker of %d: %v", p, err)
	}
	c.members[i].signal(syscall.SIGSTOP)
	for child := range strings.FieldsSeq(string(children)) {
		if err := exec.Command("kill", "-STOP", child).Run(); err != nil {
			c.t.Fatal(err)
		}
	}
	tick := time.NewTicker(5 * beatEvery)
	defer tick.Stop()
	since := time.Duration(sharedClock())
	for began := time.Now(); ; <-tick.C { // until the others have its index
		if members, all := c.log.onShift(since); all && members == len(c.members)-1 {
			break
		}
		if time.Since(began) > patience {
			c.t.Fatal("the others never have all indices")
		}
	}
	c.members[i].signal(syscall.SIGCONT)
	c.complete(fmt.Sprint("stopped ", i))
}

// roll restarts all members, one after the other.
func (c *crew) roll(n int) {
	for i := range n {
		c.members[i].signal(syscall.SIGTERM)
		c.members[i].wait()
		c.start(i)
		c.complete(fmt.Sprint("restarted ", i))
	}
}

// TestCrew runs processes of fabric-node balance with workers, and kills, stops and
// restarts them: each time every member has its index again, none stays without. With
// the barrier no two workers ever have one index at one time, but for the moment in which
// one that was stopped goes on, when its epoch is a former one; without it, no longer than
// it takes a view to reach everyone.
func TestCrew(t *testing.T) {
	t.Parallel()
	for _, barrier := range []string{"index", "off"} {
		t.Run("barrier "+barrier, func(t *testing.T) {
			t.Parallel()
			size, rounds, restarts := 6, 2, 2
			if *full {
				size, rounds, restarts = 50, 6, 50
			}
			s := natstest.Start(t)
			path := filepath.Join(t.TempDir(), "log")
			c := &crew{t: t, url: s.URL(), barrier: barrier, members: make([]*process, size)}
			c.log = &shiftLog{t: t, path: path, shifts: map[[2]int]*shift{}}
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			for i := range c.members {
				c.start(i)
			}
			c.complete("started")
			for range rounds {
				c.kill(r, min(4, size-1))
			}
			c.freeze(0) // in the order of the PIDs the first has index 0
			c.roll(restarts)
			count, longest, text := c.log.overlaps()
			t.Logf("%d members, %d killed, %d restarted: %d shifts, %d overlaps, the longest of %v; %d late signs of a stopped worker",
				size, rounds*min(4, size-1), restarts, len(c.log.shifts), count, longest, len(c.log.late))
			if late := c.log.unfenced(); len(late) > 0 {
				t.Errorf("the epoch does not keep from acting: %+v", late)
			}
			switch {
			case barrier == "index" && count > 0:
				t.Errorf("overlaps:\n%s", strings.Join(text, "\n"))
			case longest > balance.MaxSettle+2*time.Second: // for processes of a busy machine to act on one view
				t.Errorf("an overlap of %v, want at most %v", longest, balance.MaxSettle)
			}
		})
	}
}

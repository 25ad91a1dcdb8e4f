package main

import (
	"bytes"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reapDelay passes between the end of a child and the look for it: os/exec takes its own
// meanwhile, and one look finds many.
const reapDelay = 50 * time.Millisecond

// adoptOrphans makes this process the parent of what its commands leave behind.
// Else they belong to process 1, which in a container often waits for nobody, and
// an ended process that nobody waits for keeps its group in existence.
var adoptOrphans = sync.OnceFunc(func() {
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
})

// waited are the children that os/exec waits for.
var waited = struct {
	sync.Mutex // also held over Start and over reap: no PID is reused meanwhile
	pids       map[int]bool
}{pids: map[int]bool{}}

// startWaited calls start, which starts a process that os/exec waits for. Its PID is to be
// given to forgetWaited after that.
func startWaited(start func() (pid int, err error)) error {
	waited.Lock()
	defer waited.Unlock()
	pid, err := start()
	if err == nil {
		waited.pids[pid] = true
	}
	return err
}

func forgetWaited(pid int) {
	waited.Lock()
	defer waited.Unlock()
	delete(waited.pids, pid)
}

// reapOrphans waits for adopted children until stop is closed, so that none stays in the
// process table.
func reapOrphans(stop <-chan struct{}) {
	ended := make(chan os.Signal, 1) // one look finds all
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	for {
		reap()
		select {
		case <-ended:
		case <-stop:
			return
		}
		select {
		case <-time.After(reapDelay):
		case <-stop:
			return
		}
	}
}

// reap leaves alone what is in our own process group: no command is.
func reap() {
	waited.Lock()
	defer waited.Unlock()
	self, own := os.Getpid(), unix.Getpgrp()
	for _, p := range processTable() {
		if p.parent == self && p.ended && p.group != own && !waited.pids[p.pid] {
			unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
		}
	}
}

// strays returns the process groups, but for the command's own, in which something runs
// that the command has started. That is who descends from the command, or is an orphan
// that we have adopted and is in a group where a descendant was seen, or has the
// command's mark in its environment. Not found is an orphan that before the first look
// had both left its group and lost the mark (env -i, sudo), one whose parents a /proc
// with hidepid hides, and who forks again and again faster than the table can be read.
// c.mu is held.
func (c *child) strays() (groups []int) {
	own, table := unix.Getpgrp(), processTable()
	for _, p := range table {
		if p.ended || p.group == c.pid || p.group == own || p.group <= 1 || !c.started(p, table) {
			continue
		}
		c.groups[p.group] = true
		if !slices.Contains(groups, p.group) {
			groups = append(groups, p.group)
		}
	}
	return groups
}

// started reports whether p descends from us, by way of what belongs to the command.
func (c *child) started(p proc, table map[int]proc) bool {
	self, found := os.Getpid(), false
	for range table { // read at different moments, it may have a cycle
		found = found || p.pid == c.pid || c.groups[p.group]
		if p.parent == self {
			return found || c.marked(p.pid)
		}
		next, ok := table[p.parent]
		if !ok {
			return false
		}
		p = next
	}
	return false
}

func (c *child) marked(pid int) bool {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	return err == nil && bytes.Contains(env, []byte(c.mark))
}

// A proc is an entry of the process table.
type proc struct {
	pid, parent, group int
	ended              bool // and its parent has not waited for it
}

// processTable reads the process table; without /proc it is empty. Who comes, goes or loses
// its parent meanwhile may be missing.
func processTable() map[int]proc {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	table := map[int]proc{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + name + "/stat")
		// The second field is a name in parentheses, and may hold anything.
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		if err != nil || len(fields) < 18 {
			continue
		}
		number := func(i int) int { n, _ := strconv.Atoi(string(fields[i])); return n }
		// The first thread may have ended before the others.
		ended := (fields[0][0] == 'Z' || fields[0][0] == 'X') && number(17) <= 1
		table[pid] = proc{pid, number(1), number(2), ended}
	}
	return table
}

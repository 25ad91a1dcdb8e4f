//go:build unix

package tests

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A fault is something that goes wrong, and comes right again.
type fault struct {
	kind  string
	quick bool          // part of the usual run
	hold  time.Duration // how long it lasts; 0: some seconds, by chance
	// elects says that servers may elect after the healing, which takes 4 to 9 s.
	elects bool
	// begin breaks something, and returns what heals it.
	begin func(nm *nemesis) (heal func())
	needs func(nm *nemesis) string // why it cannot be done here
}

func (f fault) lacks(nm *nemesis) string {
	if f.needs == nil {
		return ""
	}
	return f.needs(nm)
}

// limit is how long after healing all views are equal at the latest.
func (f fault) limit() time.Duration {
	if f.elects {
		return nemesisLease + 12*time.Second
	}
	return nemesisLease + 2*time.Second
}

var faults = []fault{
	{kind: "kill-server", elects: true, begin: func(nm *nemesis) func() { return nm.killServer(nm.rng.IntN(3)) }},
	{kind: "kill-leader", elects: true, begin: func(nm *nemesis) func() { return nm.killServer(nm.c.LeaderOf(bucket)) }},
	{kind: "kill-all-servers", elects: true, begin: func(nm *nemesis) func() {
		for i := range 3 {
			nm.c.Kill(i)
		}
		return func() {
			for i := range 3 {
				nm.c.Start(i)
			}
			nm.c.WaitReady()
		}
	}},
	{kind: "kill-member", quick: true, begin: func(nm *nemesis) func() {
		m := nm.someone()
		nm.kill(m)
		return func() { nm.start(m) }
	}},
	{kind: "pause-member-1x", hold: nemesisLease, begin: (*nemesis).pauseMember},
	{kind: "pause-member-3x", hold: 3 * nemesisLease, begin: (*nemesis).pauseMember},
	{kind: "cpu-20%", hold: 6 * time.Second, begin: (*nemesis).starve},
	{kind: "pause-server", elects: true, hold: 6 * time.Second, begin: func(nm *nemesis) func() {
		i := nm.rng.IntN(3)
		nm.c.Pause(i)
		return func() { nm.c.Resume(i); nm.c.WaitReady() }
	}},
	{kind: "isolate-server", elects: true, begin: func(nm *nemesis) func() {
		i := nm.rng.IntN(3)
		return nm.routes((*natstest.Proxy).Cut, [2]int{i, (i + 1) % 3}, [2]int{i, (i + 2) % 3})
	}},
	{kind: "partial-partition", elects: true, begin: func(nm *nemesis) func() {
		i := nm.rng.IntN(3)
		return nm.routes((*natstest.Proxy).Cut, [2]int{i, (i + 1) % 3})
	}},
	{kind: "one-way-route", elects: true, begin: func(nm *nemesis) func() {
		i, j := nm.rng.IntN(3), 1+nm.rng.IntN(2)
		from, to := i, (i+j)%3
		nm.c.Route(from, to).CutOneWay(natstest.ToServer)
		nm.c.Route(to, from).CutOneWay(natstest.ToClient)
		return func() { nm.c.Route(from, to).Heal(); nm.c.Route(to, from).Heal(); nm.c.WaitReady() }
	}},
	{kind: "loss-30%", elects: true, begin: func(nm *nemesis) func() { return nm.everywhere(func(p *natstest.Proxy) { p.Lose(0.3) }) }},
	{kind: "delay-100ms", elects: true, begin: func(nm *nemesis) func() {
		return nm.everywhere(func(p *natstest.Proxy) { p.Delay(100 * time.Millisecond) })
	}},
	{kind: "reset-all", quick: true, elects: true, begin: func(nm *nemesis) func() { return nm.everywhere((*natstest.Proxy).Reset) }},
	{kind: "cut-member", quick: true, begin: func(nm *nemesis) func() { return nm.ways((*natstest.Proxy).Cut) }},
	{kind: "deaf-member", hold: 2 * nemesisLease, begin: func(nm *nemesis) func() {
		return nm.ways(func(p *natstest.Proxy) { p.CutOneWay(natstest.ToClient) })
	}},
	{kind: "mute-member", hold: 2 * nemesisLease, begin: func(nm *nemesis) func() {
		return nm.ways(func(p *natstest.Proxy) { p.CutOneWay(natstest.ToServer) })
	}},
	{kind: "step-down", quick: true, elects: true, begin: func(nm *nemesis) func() { nm.c.StepDown(bucket); return func() {} }},
	{kind: "lame-duck", elects: true, begin: func(nm *nemesis) func() {
		i := nm.c.LeaderOf(bucket)
		nm.c.LameDuck(i)
		return func() { nm.c.Start(i); nm.c.WaitReady() }
	}},
	{kind: "rolling-upgrade", elects: true, needs: func(*nemesis) string {
		if *oldServer == "" {
			return "needs -nemesis.upgrade"
		}
		return ""
	}, begin: func(nm *nemesis) func() {
		for i := range 3 {
			nm.c.Upgrade(i, *oldServer)
			nm.c.WaitReady()
		}
		return func() {
			for i := range 3 {
				nm.c.Upgrade(i, "")
				nm.c.WaitReady()
			}
		}
	}},
	{kind: "bucket-deleted", elects: true, begin: func(nm *nemesis) func() {
		nm.c.DeleteStream(bucket)
		return func() {}
	}},
	{kind: "slow-fsync", elects: true, needs: needsStrace, begin: func(nm *nemesis) func() { return nm.inject("delay_enter=300000") }},
	{kind: "fsync-error", elects: true, needs: needsStrace, begin: func(nm *nemesis) func() { return nm.inject("error=EIO") }},
	{kind: "disk-full", elects: true, needs: func(nm *nemesis) string {
		if len(nm.disks) == 0 {
			return "cannot mount a tmpfs"
		}
		return ""
	}, begin: (*nemesis).fillDisk},
}

// someone is any member, every other time the one that led last: it has more to lose.
func (nm *nemesis) someone() *nemesisMember {
	m := nm.members[nm.rng.IntN(len(nm.members))]
	if led := nm.log.led(); nm.rng.IntN(2) == 0 {
		for _, o := range nm.members {
			if o.pid == led {
				return o
			}
		}
	}
	return m
}

func (nm *nemesis) killServer(i int) func() {
	nm.c.Kill(i)
	return func() { nm.c.Start(i); nm.c.WaitReady() }
}

func (nm *nemesis) pauseMember() func() {
	m := nm.someone()
	if err := m.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		nm.t.Fatal(err)
	}
	return func() {
		if err := m.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			nm.t.Fatal(err)
		}
	}
}

// starve lets a member run for 20 of each 100 ms.
func (nm *nemesis) starve() func() {
	m := nm.someone()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // waited for by the healing
		defer close(done)
		for {
			for _, s := range []struct {
				sig syscall.Signal
				d   time.Duration
			}{{syscall.SIGSTOP, 80 * time.Millisecond}, {syscall.SIGCONT, 20 * time.Millisecond}} {
				_ = m.cmd.Process.Signal(s.sig)
				select {
				case <-stop:
					_ = m.cmd.Process.Signal(syscall.SIGCONT)
					return
				case <-time.After(s.d):
				}
			}
		}
	}()
	return func() { close(stop); <-done }
}

// routes spoils the connections of pairs of servers, whoever made them.
func (nm *nemesis) routes(spoil func(*natstest.Proxy), pairs ...[2]int) func() {
	each := func(f func(*natstest.Proxy)) {
		for _, p := range pairs {
			f(nm.c.Route(p[0], p[1]))
			f(nm.c.Route(p[1], p[0]))
		}
	}
	each(spoil)
	return func() { each((*natstest.Proxy).Heal); nm.c.WaitReady() }
}

// ways spoils all connections of one member.
func (nm *nemesis) ways(spoil func(*natstest.Proxy)) func() {
	m := nm.someone()
	for _, p := range m.ways {
		spoil(p)
	}
	return func() {
		for _, p := range m.ways {
			p.Heal()
		}
	}
}

// everywhere spoils all connections, of servers and members.
func (nm *nemesis) everywhere(spoil func(*natstest.Proxy)) func() {
	each := func(f func(*natstest.Proxy)) {
		for i := range 3 {
			for j := range 3 {
				if i != j {
					f(nm.c.Route(i, j))
				}
			}
		}
		for _, m := range nm.members {
			for _, p := range m.ways {
				f(p)
			}
		}
	}
	each(spoil)
	return func() { each((*natstest.Proxy).Heal); nm.c.WaitReady() }
}

func needsStrace(nm *nemesis) string {
	if _, err := exec.LookPath("strace"); err != nil {
		return "no strace"
	}
	return ""
}

// inject spoils the syncs of the server that leads the bucket. It is started again at
// the end: one whose disk failed does not go on by itself.
func (nm *nemesis) inject(how string) func() {
	i := nm.c.LeaderOf(bucket)
	cmd := exec.Command("strace", "-f", "-qq", "-p", strconv.Itoa(nm.c.PID(i)), "-e", "trace=fsync,fdatasync",
		"-e", "inject=fsync,fdatasync:"+how, "-o", os.DevNull)
	if err := cmd.Start(); err != nil {
		nm.t.Fatal(err)
	}
	return func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended with the server
		_ = cmd.Wait()
		nm.c.Kill(i)
		nm.c.Start(i)
		nm.c.WaitReady()
	}
}

// disk gives the first server a small disk of its own, if this machine lets us.
func (nm *nemesis) disk(member int, dir string) {
	if member != 0 || *nemesisFor == 0 {
		return
	}
	if err := mountTmpfs(dir, "size=64m"); err != nil {
		return // the fault is reported as not done
	}
	nm.disks[member] = dir
	nm.t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			nm.t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// fillDisk leaves no room on a server's disk.
func (nm *nemesis) fillDisk() func() {
	path := filepath.Join(nm.disks[0], "filler")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		nm.t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		nm.t.Fatalf("the disk is not full: %v", err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			nm.t.Fatal(err)
		}
		nm.c.Kill(0) // JetStream is off until the server starts again
		nm.c.Start(0)
		nm.c.WaitReady()
	}
}

//go:build unix

package tests

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

var (
	nemesisFor  = flag.Duration("nemesis", 0, "let faults happen for so `long`, all kinds that this machine can do; 12m is the campaign")
	nemesisSeed = flag.Uint64("nemesis.seed", 0, "replay the faults of a run that printed this `seed`")
	nemesisOnly = flag.String("nemesis.only", "", "faults of these `kinds` only, separated by commas")
	oldServer   = flag.String("nemesis.upgrade", "", "also upgrade from and to this `version` of nats-server, under load")
)

const (
	nemesisLease   = 5 * time.Second
	nemesisMembers = 5
	nemesisWorkers = 2 // indices that each member wants
	nemesisGroup   = "work"
	// loadFloor is how many messages a second are answered when nothing is broken: a
	// run that asks for less proves less.
	loadFloor = 100
)

// A nemesis is three servers, a process for each of five members, and who breaks them.
type nemesis struct {
	t       *testing.T
	c       *natstest.Cluster
	rng     *rand.Rand
	log     *nemesisLog
	members []*nemesisMember
	disks   map[int]string // directories of servers on a disk of their own

	faults map[string]int // how often each kind happened
	past   []window
	slow   time.Duration // the longest time from healing to one view
	calm   time.Duration // time without a fault, and what was answered in it
	served int
}

// A nemesisMember is a member's process, and its ways to the servers.
type nemesisMember struct {
	pid   fabric.PID
	ways  []*natstest.Proxy
	life  int // counts its processes
	cmd   *exec.Cmd
	ended chan struct{}
}

func (m *nemesisMember) process() string { return fmt.Sprintf("%s#%d", m.pid, m.life) }

func newNemesis(t *testing.T, seed uint64) *nemesis {
	t.Helper()
	nm := &nemesis{
		t: t, rng: rand.New(rand.NewPCG(seed, 2)), log: newNemesisLog(), disks: map[int]string{}, faults: map[string]int{},
	}
	setup := natstest.Setup{Proxied: true, Seed: seed, SyncAlways: true, Disk: nm.disk}
	nm.c = natstest.StartSetup(t, 3, setup)
	for i := range nemesisMembers {
		m := &nemesisMember{pid: number(i)}
		for j, url := range nm.c.URLs() {
			m.ways = append(m.ways, natstest.NewProxy(t, strings.TrimPrefix(url, "nats://"), seed+uint64(100*i+j)))
		}
		nm.members = append(nm.members, m)
	}
	for _, m := range nm.members {
		nm.start(m)
	}
	t.Cleanup(func() {
		for _, m := range nm.members {
			nm.kill(m)
		}
	})
	return nm
}

// start starts the process of a member.
func (nm *nemesis) start(m *nemesisMember) {
	nm.t.Helper()
	job := memberJob{PID: m.pid, Lease: nemesisLease}
	var urls []string
	for i := range m.ways { // each has a server of its own to begin with
		urls = append(urls, "nats://"+m.ways[(i+m.life+int(m.pid[0]))%len(m.ways)].Addr())
	}
	job.URL = strings.Join(urls, ",")
	for _, o := range nm.members {
		job.Peers = append(job.Peers, o.pid)
	}
	text, err := json.Marshal(job)
	if err != nil {
		nm.t.Fatal(err)
	}
	m.life++
	m.cmd = exec.Command(os.Args[0])
	m.cmd.Env = append(os.Environ(), nemesisEnv+"="+string(text))
	m.cmd.Stderr = nm.t.Output()
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		nm.t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		nm.t.Fatal(err)
	}
	cmd, ended, process := m.cmd, make(chan struct{}), m.process()
	m.ended = ended
	go func() { // ends with the process; kill waits for it
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var r record
			if json.Unmarshal(lines.Bytes(), &r) == nil { // the last line of a killed one may be half
				nm.log.add(process, r)
			}
		}
		_ = cmd.Wait() // it was killed, mostly
	}()
}

func (nm *nemesis) kill(m *nemesisMember) {
	_ = m.cmd.Process.Signal(syscall.SIGCONT) // fails if it has ended
	_ = m.cmd.Process.Kill()
	<-m.ended
}

// stop has all members leave, and waits until all that they wrote is read.
func (nm *nemesis) stop() {
	nm.t.Helper()
	for _, m := range nm.members {
		if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			nm.t.Errorf("stop %s: %v", m.process(), err)
		}
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for _, m := range nm.members {
		select {
		case <-m.ended:
		case <-timer.C:
			nm.t.Fatalf("%s has not left after %v", m.process(), patience)
		}
		if code := m.cmd.ProcessState.ExitCode(); code != 0 {
			nm.t.Errorf("%s left with code %d", m.process(), code)
		}
	}
}

// settle waits until all members have the same view of all members, and fails if that
// takes longer than limit.
func (nm *nemesis) settle(limit time.Duration) {
	nm.t.Helper()
	began := time.Now()
	processes := nm.processes()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		ok, why, changed := nm.log.equal(processes, len(processes))
		if ok {
			break
		}
		select {
		case <-changed:
		case <-timer.C:
			nm.t.Fatalf("%v after healing the views differ: %s", patience, why)
		}
	}
	took := time.Since(began)
	nm.slow = max(nm.slow, took)
	if *nemesisFor == 0 { // beside other tests
		limit += 5 * time.Second
	}
	if took > limit {
		nm.t.Errorf("the views were equal %v after healing, want within %v", took.Round(time.Millisecond), limit)
	}
}

// rest lets the members work for d with nothing broken, and counts what is answered.
func (nm *nemesis) rest(d time.Duration) {
	before := nm.log.answered()
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
	nm.calm += d
	nm.served += nm.log.answered() - before
}

// awaitHolders waits until every index of the group is held, and returns how often one
// was handed out so far.
func (nm *nemesis) awaitHolders() (handed int) {
	nm.t.Helper()
	since := sharedClock()
	processes := nm.processes()
	ctx := within(nm.t, patience)
	for {
		handed, held := nm.log.holdings(processes, since)
		if len(held) == nemesisMembers*nemesisWorkers {
			return handed
		}
		if ctx.Err() != nil {
			nm.t.Fatalf("after %v only the indices %v are held", patience, slices.Sorted(maps.Keys(held)))
		}
		pauseFor(ctx, 200*time.Millisecond)
	}
}

// processes are those of the members now.
func (nm *nemesis) processes() (processes []string) {
	for _, m := range nm.members {
		processes = append(processes, m.process())
	}
	return processes
}

// awaitLinked waits until what the members have sent each other in mode Reliable has come.
func (nm *nemesis) awaitLinked() {
	nm.t.Helper()
	processes := nm.processes()
	last := nm.log.underway(processes)
	if want := nemesisMembers * (nemesisMembers - 1); len(last) != want {
		nm.t.Errorf("%d pairs of members send in mode Reliable, want %d", len(last), want)
	}
	ctx := within(nm.t, patience)
	for missing := nm.log.missing(last, processes); len(missing) > 0; missing = nm.log.missing(last, processes) {
		if ctx.Err() != nil {
			nm.t.Fatalf("after %v: %s", patience, strings.Join(missing, "; "))
		}
		pauseFor(ctx, 50*time.Millisecond)
	}
}

// TestNemesis breaks servers, members and what is between them, and checks what
// everybody saw. Without -nemesis it does a few quick faults.
func TestNemesis(t *testing.T) {
	t.Parallel()
	seed := *nemesisSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("faults of this run: -nemesis.seed %d", seed)
	nm := newNemesis(t, seed)
	nm.settle(patience)
	nm.awaitHolders()
	nm.rest(2 * time.Second)
	fresh := nm.resources()

	chosen := nm.chosen()
	for round, until := 0, time.Now().Add(*nemesisFor); ; round++ {
		if round%len(chosen) == 0 {
			if *nemesisFor == 0 && round > 0 || *nemesisFor > 0 && time.Now().After(until) {
				break
			}
			nm.rng.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
		}
		if *nemesisFor > 0 && time.Now().After(until) {
			break
		}
		nm.round(round, chosen[round%len(chosen)])
		if t.Failed() {
			break
		}
	}
	handed := nm.awaitHolders()
	nm.awaitLinked()
	nm.checkResources(fresh)
	nm.stop() // what is written down now is all
	if err := nm.log.check(nm.past); err != nil {
		t.Error(err)
	}
	if g := nm.log.garbage(); len(g) > 0 {
		t.Error(strings.Join(g, "\n"))
	}
	rate := float64(nm.served) / nm.calm.Seconds()
	total := 0
	for _, n := range nm.faults {
		total += n
	}
	t.Logf("%d faults of %d kinds; %d messages got, %d of them in mode Reliable, %d answered, %.0f a second when nothing was broken; %d terms, %d looks at one; "+
		"indices handed out %d times, %d looks at one; views equal %v after healing at the latest", total, len(nm.faults), nm.log.tally("got"), nm.log.linked(), nm.log.answered(), rate,
		nm.log.tally("term"), nm.log.tally("believes"), handed, nm.log.tally("holds"), nm.slow.Round(time.Millisecond))
	t.Logf("faults: %v", nm.faults)
	if nm.log.late > 0 {
		t.Logf("%d messages that nobody acknowledges came after later ones, all from servers that were frozen: their order is per path", nm.log.late)
	}
	floor := loadFloor
	if *nemesisFor == 0 { // beside other tests
		floor /= 5
	}
	if rate < float64(floor) {
		t.Errorf("%.0f messages a second were answered when nothing was broken, want %d at least", rate, floor)
	}
	if nm.log.tally("term") == 0 || nm.log.tally("believes") == 0 {
		t.Error("nobody led")
	}
	if nm.faults["kill-member"] > 0 && handed <= nemesisMembers*nemesisWorkers {
		t.Error("no index changed hands")
	}
}

// chosen are the faults of this run.
func (nm *nemesis) chosen() (chosen []fault) {
	var skipped []string
	for _, f := range faults {
		switch {
		case *nemesisOnly != "":
			if !slices.Contains(strings.Split(*nemesisOnly, ","), f.kind) {
				continue
			}
		case *nemesisFor == 0 && !f.quick:
			continue
		}
		if why := f.lacks(nm); why != "" {
			skipped = append(skipped, f.kind+" ("+why+")")
			continue
		}
		chosen = append(chosen, f)
	}
	if len(skipped) > 0 {
		nm.t.Logf("NOT DONE on this machine: %s", strings.Join(skipped, ", "))
	}
	if len(chosen) == 0 {
		nm.t.Fatal("no faults are left")
	}
	return chosen
}

// round does one fault, heals it, and waits for the members to agree.
func (nm *nemesis) round(n int, f fault) {
	nm.t.Helper()
	began, since := time.Now(), sharedClock()
	heal := f.begin(nm)
	hold := f.hold
	if hold == 0 {
		hold = 2*time.Second + time.Duration(nm.rng.Int64N(int64(4*time.Second)))
		if *nemesisFor == 0 {
			hold = time.Second
		}
	}
	pauseFor(nm.t.Context(), hold)
	heal()
	nm.faults[f.kind]++
	nm.past = append(nm.past, window{f.kind, since, sharedClock() + nemesisLease.Nanoseconds()})
	healed := time.Now()
	nm.settle(f.limit())
	nm.t.Logf("%3d %-18s %6.2f s, views equal after %.2f s", n, f.kind, healed.Sub(began).Seconds(), time.Since(healed).Seconds())
	nm.rest(time.Second)
}

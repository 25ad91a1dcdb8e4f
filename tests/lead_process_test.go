//go:build unix

package tests

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// Five processes `fabric-node lead` with a command each that acts as fast as it can,
// and a nemesis of one kind.
const (
	leadProcesses = 5
	leadTTL       = 2 * time.Second
)

// leadFor is how long a nemesis is at work.
func leadFor() time.Duration {
	if *full {
		return time.Minute
	}
	return 7 * leadTTL
}

// A leadRun is a run of one kind.
type leadRun struct {
	t     *testing.T
	rand  *rand.Rand
	dir   string // of what the commands write
	procs []*leadProcess
	end   time.Time
	kills int
}

// A leadProcess is one of the five, restarted when it ends.
type leadProcess struct {
	*process
	pid   string
	proxy *natstest.Proxy
	url   string
}

func newLeadRun(t *testing.T, addr func(i int) string) *leadRun {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := &leadRun{t: t, rand: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir()}
	for i := range leadProcesses {
		p := &leadProcess{pid: fmt.Sprint("n", i), proxy: natstest.NewProxy(t, addr(i), seed+uint64(i))}
		p.url = "nats://" + p.proxy.Addr()
		r.procs = append(r.procs, p)
		r.restart(p)
	}
	r.await(1)
	r.end = time.Now().Add(leadFor())
	return r
}

// restart starts p. The PID is another each time, so that no lease of its own stands in
// its way.
func (r *leadRun) restart(p *leadProcess) {
	r.t.Helper()
	r.kills++
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	p.process = launch(r.t, p.url, "lead", "x", "-p", p.pid+"-"+strconv.Itoa(r.kills), "--ttl", leadTTL.String(), "--grace", "300ms", "--timeout", "10s",
		"--retry", "--", "env", leadEnv+"="+r.dir, self)
}

// on reports whether there is time left, after it has waited a while.
func (r *leadRun) on(low, high time.Duration) bool {
	timer := time.NewTimer(r.between(low, high))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.t.Context().Done():
		return false
	}
	return time.Now().Before(r.end) && !r.t.Failed()
}

func (r *leadRun) between(low, high time.Duration) time.Duration {
	return low + time.Duration(r.rand.Int64N(int64(high-low)))
}

// leader returns who acted last, and its command; nil if that one has ended since.
func (r *leadRun) leader() (*leadProcess, int) {
	r.t.Helper()
	acts, err := readActs(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := len(acts) - 1; i >= 0; i-- {
		for _, p := range r.procs {
			if acts[i].supervisor == p.cmd.Process.Pid {
				return p, acts[i].pid
			}
		}
		if sharedClock()-acts[i].at > int64(leadTTL) {
			break
		}
	}
	return nil, 0
}

// await waits until there were that many leaders.
func (r *leadRun) await(leaders int) {
	r.t.Helper()
	ctx := within(r.t, patience)
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		acts, err := readActs(r.dir)
		if err != nil {
			r.t.Fatal(err)
		}
		if got, _, _ := checkActs(acts, true); got >= leaders {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("fewer than %d leaders", leaders)
		}
	}
}

// check ends a run: whoever is left leads once more, and nothing was wrong. A run of a
// minute with fewer than the hand-overs given, or a shorter one in proportion, shows
// nothing.
func (r *leadRun) check(gap bool, handOvers float64) {
	r.t.Helper()
	for _, p := range r.procs {
		p.proxy.Heal()
	}
	before, err := readActs(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	if p, _ := r.leader(); p != nil { // and one more has to follow
		p.signal(syscall.SIGTERM)
	}
	leaders, _, _ := checkActs(before, gap)
	r.await(leaders + 1)
	acts, err := readActs(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	leaders, refused, wrong := checkActs(acts, gap)
	for _, w := range wrong {
		r.t.Error(w)
	}
	r.t.Logf("%d leaders, %d acts, %d of them refused by the fence, %d starts", leaders, len(acts), refused, r.kills)
	if want := max(3, int(handOvers*leadFor().Minutes())); leaders < want {
		r.t.Errorf("%d leaders, want %d for the run to mean anything", leaders, want)
	}
}

// leadServer starts one server as a process, to be killed and started again.
type leadServer struct {
	*process
	t         *testing.T
	addr, dir string
}

func newLeadServer(t *testing.T) *leadServer {
	t.Helper()
	port, err := natstest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	s := &leadServer{t: t, addr: fmt.Sprint("127.0.0.1:", port), dir: t.TempDir()}
	s.start()
	return s
}

// start returns when the server takes connections.
func (s *leadServer) start() {
	s.t.Helper()
	s.process = launch(s.t, "", "server", "--insecure", "--addr", s.addr, "--store", s.dir)
	ctx := within(s.t, patience)
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("no server: %v", err)
		}
	}
}

func (s *leadServer) at(int) string { return s.addr }

// A leader is killed, and its command with it.
func TestLeadProcessesKilled(t *testing.T) {
	t.Parallel()
	r := newLeadRun(t, newLeadServer(t).at)
	for r.on(leadTTL/2, 2*leadTTL) {
		if p, _ := r.leader(); p != nil {
			p.signal(syscall.SIGKILL)
			p.wait()
			r.restart(p)
		}
	}
	r.check(false, 20)
}

// A leader and its command are stopped, as by a host that is frozen, for half a lease
// to three. The command goes on before its supervisor can end it: that is the gap, and
// what it does then is refused by the fence.
func TestLeadProcessesStopped(t *testing.T) {
	t.Parallel()
	r := newLeadRun(t, newLeadServer(t).at)
	for r.on(leadTTL/4, leadTTL) {
		p, command := r.leader()
		if p == nil {
			continue
		}
		p.signal(syscall.SIGSTOP)
		_ = syscall.Kill(command, syscall.SIGSTOP) // fails if it has ended
		r.on(leadTTL/2, 3*leadTTL)
		_ = syscall.Kill(command, syscall.SIGCONT)
		p.signal(syscall.SIGCONT)
	}
	r.check(true, 10)
}

// A leader is cut off, or only what it sends or receives.
func TestLeadProcessesCutOff(t *testing.T) {
	t.Parallel()
	r := newLeadRun(t, newLeadServer(t).at)
	for r.on(leadTTL/4, leadTTL) {
		p, _ := r.leader()
		if p == nil {
			continue
		}
		switch r.rand.IntN(4) {
		case 0:
			p.proxy.Cut()
		case 1:
			p.proxy.CutOneWay(natstest.ToServer)
		case 2:
			p.proxy.CutOneWay(natstest.ToClient)
		default:
			p.proxy.Reset()
			p.proxy.Cut()
		}
		r.on(leadTTL/2, 3*leadTTL)
		p.proxy.Heal()
	}
	r.check(false, 10)
}

// The server is killed and started again, at once or after the leases have run out.
func TestLeadProcessesServerKilled(t *testing.T) {
	t.Parallel()
	s := newLeadServer(t)
	r := newLeadRun(t, s.at)
	for r.on(leadTTL/2, 2*leadTTL) {
		s.signal(syscall.SIGKILL)
		s.wait()
		r.on(time.Millisecond, 2*leadTTL)
		s.start()
		if p, _ := r.leader(); p != nil && r.rand.IntN(2) == 0 {
			p.signal(syscall.SIGTERM)
			p.wait()
			r.restart(p)
		}
	}
	r.check(false, 8)
}

// The server is killed and has lost everything when it comes back. Nobody is started
// meanwhile: that a bucket is not lost while a holder is cut off is assumed.
func TestLeadProcessesServerForgets(t *testing.T) {
	t.Parallel()
	s := newLeadServer(t)
	r := newLeadRun(t, s.at)
	for r.on(leadTTL, 3*leadTTL) {
		s.signal(syscall.SIGKILL)
		s.wait()
		if err := os.RemoveAll(s.dir); err != nil {
			t.Fatal(err)
		}
		s.start()
		r.on(2*leadTTL, 3*leadTTL)
	}
	r.check(false, 8)
}

// The stream's leader of three servers is killed, and started again.
func TestLeadProcessesStreamLeaderKilled(t *testing.T) {
	if !*full {
		t.Skip("takes a minute: see -full")
	}
	c := natstest.StartProcesses(t, 3)
	urls := c.URLs()
	r := newLeadRun(t, func(i int) string { return strings.TrimPrefix(urls[i%3], "nats://") })
	for r.on(leadTTL, 3*leadTTL) {
		i := c.LeaderOf("KV_fab_t_production")
		c.Kill(i)
		r.on(leadTTL, 2*leadTTL)
		c.Start(i)
		c.WaitReady()
	}
	r.check(false, 3)
}

// Twenty starts and ends a second, in order and not, of leaders and others.
func TestLeadProcessesChurn(t *testing.T) {
	if !*full {
		t.Skip("takes a minute of both processors: see -full")
	}
	r := newLeadRun(t, newLeadServer(t).at)
	began, starts := time.Now(), r.kills
	ending := map[*leadProcess]bool{}
	for r.on(5*time.Millisecond, 25*time.Millisecond) {
		for p := range ending {
			if p.over() {
				delete(ending, p)
				r.restart(p)
			}
		}
		i := r.rand.IntN(len(r.procs))
		p := r.procs[i]
		// Two live on unless they lead: to end a leader's lease takes somebody who lives for
		// as long.
		if leads, _ := r.leader(); ending[p] || i < 2 && leads != p {
			continue
		}
		sig := syscall.SIGTERM
		if r.rand.IntN(4) == 0 {
			sig = syscall.SIGKILL
		}
		p.signal(sig)
		ending[p] = true
	}
	for p := range ending {
		p.wait()
		r.restart(p)
	}
	t.Logf("%.1f restarts a second", float64(r.kills-starts)/time.Since(began).Seconds())
	r.check(false, 20)
}

//go:build linux

package peers

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds what takes moments when all is well.
const patience = 60 * time.Second

// roleEnv makes this test binary a process of a role, with what follows as its
// arguments, that says "ready" and what else the role has to say, and ends with its
// input.
const roleEnv = "PEERS_ROLE"

// roles returns once what it plays is ready, with something to say about it.
var roles = map[string]func(ctx context.Context, args []string) (say string, err error){
	"nats":          playServer(true),
	"nats-unsynced": playServer(false),
	"leader":        playLeader,
	"stander":       playStander,
	"member":        playMember,
	"spinners":      playSpinners,
}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		say, err := roles[role](context.Background(), os.Args[1:])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready", say)
		io.Copy(io.Discard, os.Stdin) // until the parent closes it, or is gone
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A process is one of this benchmark's: killed at its end at the latest.
type process struct {
	cmd *exec.Cmd
	say string
}

// play starts a process of a role and returns when it is ready.
func play(b testing.TB, role string, args ...string) *process {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	return start(b, cmd)
}

// leanLeader builds the program leader, once.
var leanLeader = func() func(b testing.TB) string {
	build := sync.OnceValues(func() (string, error) {
		dir, err := os.MkdirTemp("", "peers")
		if err != nil {
			return "", err
		}
		exe := filepath.Join(dir, "leader")
		if out, err := exec.Command("go", "build", "-o", exe, "./leader").CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build ./leader: %w: %s", err, out)
		}
		return exe, nil
	})
	return func(b testing.TB) string {
		b.Helper()
		exe, err := build()
		if err != nil {
			b.Fatal(err)
		}
		return exe
	}
}()

// start starts a process that says when it is ready.
func start(b testing.TB, cmd *exec.Cmd) *process {
	b.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	p := run(b, cmd)
	timer := time.AfterFunc(patience, p.kill)
	defer timer.Stop()
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		b.Fatalf("%v says nothing", cmd)
	}
	first, rest, _ := bytes.Cut(lines.Bytes(), []byte(" "))
	if string(first) != "ready" {
		b.Fatalf("%v: %s", cmd, lines.Text())
	}
	p.say = string(rest)
	return p
}

// run starts a process that ends with this one's input.
func run(b testing.TB, cmd *exec.Cmd) *process {
	b.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if _, err := cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	p := &process{cmd: cmd}
	b.Cleanup(func() { p.kill(); cmd.Wait() })
	return p
}

// kill ends it with SIGKILL, if it has not ended.
func (p *process) kill() { p.cmd.Process.Kill() }

// size is the process's resident memory in MiB.
func (p *process) size(b testing.TB) int {
	b.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(string(bytes.Fields(statm)[1]))
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize() >> 20
}

// tick is the unit of the kernel's accounts (USER_HZ).
const tick = 10 * time.Millisecond

// cpu is the processor time that the process has used.
func (p *process) cpu(b testing.TB) time.Duration {
	b.Helper()
	return cpuOf(b, p.cmd.Process.Pid)
}

func cpuOf(b testing.TB, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := bytes.Cut(stat, []byte(") ")) // the name may have spaces
	fields := bytes.Fields(after)
	total := 0
	for _, at := range []int{11, 12} { // utime and stime
		n, err := strconv.Atoi(string(fields[at]))
		if err != nil {
			b.Fatal(err)
		}
		total += n
	}
	return time.Duration(total) * tick
}

// percentiles reports the times' median, 99th percentile and maximum in milliseconds,
// under the name of a system.
func percentiles(b *testing.B, name string, took []time.Duration) {
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	for p, at := range map[string]int{"p50": len(took) / 2, "p99": len(took) * 99 / 100, "max": len(took) - 1} {
		b.ReportMetric(float64(took[at].Microseconds())/1000, name+"-"+p+"-ms")
	}
	b.ReportMetric(0, "ns/op") // what is measured is not the whole of an iteration
}

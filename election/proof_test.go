//go:build linux

package election_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// helperURL makes this test binary a process that leads, for tests that kill it.
const helperURL = "ELECTION_TEST_LEADER"

func TestMain(m *testing.M) {
	if url := os.Getenv(helperURL); url != "" {
		leadForever(url)
	}
	os.Exit(m.Run())
}

func leadForever(url string) {
	ctx := context.Background()
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "c", PID: fabric.PID(os.Args[1]), URL: url, Lease: time.Minute})
	if err == nil {
		var e *election.Election
		if e, err = election.New(node, election.Config{Name: "x"}); err == nil {
			if _, err = e.Campaign(ctx); err == nil {
				fmt.Println("leading")
				select {} // until it is killed
			}
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// leader starts a process that leads.
func leader(t testing.TB, s *natstest.Server, pid string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, pid)
	cmd.Env = append(os.Environ(), helperURL+"="+s.URL())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "leading" {
		t.Fatalf("the process says %q", lines.Text())
	}
	return cmd
}

// opened is how many descriptors of the process pid this one has: of os/exec, and of
// who watches it.
func opened(t testing.TB, pid int) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fdinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		info, _ := os.ReadFile("/proc/self/fdinfo/" + fd.Name()) // it may be closed by now
		if strings.Contains(string(info), fmt.Sprintf("\nPid:\t%d\n", pid)) {
			n++
		}
	}
	return n
}

// killed kills leaders whose leases last a minute, n times, and returns how long it
// took another to lead.
func killed(t testing.TB, n int) (took []time.Duration) {
	s := natstest.Start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second+time.Duration(n)*time.Second)
	defer cancel()
	node, err := fabric.Join(ctx, fabric.Config{Cluster: "c", PID: "witness", URL: s.URL(), Lease: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer node.Leave(ctx)
	e, err := election.New(node, election.Config{Name: "x", Failover: election.Proof})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		cmd := leader(t, s, fmt.Sprint("leader", i))
		before := opened(t, cmd.Process.Pid)
		won := make(chan time.Time, 1)
		var term *election.Term
		go func() {
			var err error
			if term, err = e.Campaign(ctx); err != nil {
				t.Errorf("Campaign: %v", err)
			}
			won <- time.Now()
		}()
		for opened(t, cmd.Process.Pid) == before {
			if ctx.Err() != nil {
				t.Fatal("the candidate does not watch the leader's process")
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond) // it sees that the process lives
		if i == 0 {
			cmd.Process.Signal(syscall.SIGSTOP)
			select {
			case <-won:
				t.Fatal("another leads while the leader is stopped")
			case <-time.After(300 * time.Millisecond):
			}
		}
		began := time.Now()
		cmd.Process.Kill()
		took = append(took, (<-won).Sub(began))
		if term == nil {
			return took
		}
		if err := term.Resign(ctx); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
	}
	return took
}

// A process that is stopped keeps its lease; one that was killed is replaced long
// before its lease has run out.
func TestProofIsTheEndOfTheProcess(t *testing.T) {
	for i, took := range killed(t, 3) {
		if took > 10*time.Second {
			t.Errorf("kill %d: another leads after %v of a lease of a minute", i, took)
		}
	}
}

// BenchmarkProof: from kill -9 of the leader to the next leader's term.
func BenchmarkProof(b *testing.B) {
	took := killed(b, b.N)
	percentiles(b, took)
}

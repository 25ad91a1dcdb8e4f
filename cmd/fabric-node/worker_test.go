//go:build unix

package main

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

var (
	workerMembers = flag.Int("workers.members", 6, "processes of TestWorkersNeverOverlap")
	workerFaults  = flag.Int("workers.faults", 8, "faults of TestWorkersNeverOverlap")
)

// workerScript takes a directory that names its index, and notes if a worker that is
// alive has it.
const workerScript = `
mine="$DIR/$FABRIC_WORKER_INDEX"
if ! mkdir "$mine" 2>/dev/null; then
	other=$(cat "$mine/pid" 2>/dev/null)
	if [ -n "$other" ] && kill -0 "$other" 2>/dev/null && ! grep -q "^State:.Z" "/proc/$other/status" 2>/dev/null; then
		echo "index $FABRIC_WORKER_INDEX is $other's, and $FABRIC_PID starts $$" >>"$DIR/overlaps"
	fi
fi
mkdir -p "$mine"
echo $$ >"$mine/pid"
trap 'rm -rf "$mine"; exit 0' TERM
echo "$FABRIC_WORKER_INDEX of $FABRIC_WORKER_TOTAL" >>"$DIR/starts"
while :; do sleep 0.02; done
`

// TestWorkersNeverOverlap kills, restarts and cuts off members that run workers: no two
// workers ever run for one index, and each time all indices are run again.
func TestWorkersNeverOverlap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr := natsServer(t, &server.Options{JetStream: true})
	type memberProcess struct {
		*exec.Cmd
		cut *atomic.Bool
		log *bytes.Buffer
	}
	start := func(i int) memberProcess {
		m := memberProcess{cut: new(atomic.Bool), log: new(bytes.Buffer)}
		m.Cmd = exec.Command("fabric-node", "balance", "-i", fmt.Sprint("m", i), "-n", "2", "-s", "nats://"+relay(t, addr, m.cut),
			"--ttl", "2s", "--timeout", "20s", "--", "sh", "-c", workerScript)
		m.Env = append(os.Environ(), "DIR="+dir)
		m.Stderr = m.log
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		return m
	}
	var members []memberProcess
	for i := range *workerMembers {
		members = append(members, start(i))
	}
	defer func() {
		for _, m := range members {
			m.Process.Signal(syscall.SIGTERM)
		}
		for _, m := range members {
			if m.Wait(); t.Failed() {
				t.Logf("%s", m.log)
			}
		}
	}()
	total := 2 * len(members)
	// complete waits until a worker runs for each index.
	complete := func() {
		t.Helper()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		running := 0
		for limit := time.Now().Add(patience); time.Now().Before(limit); <-tick.C {
			running = 0
			for i := range total {
				text, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i), "pid"))
				if err == nil && running == i && alive(strings.TrimSpace(string(text))) {
					running++
				}
			}
			if running == total {
				return
			}
		}
		t.Fatalf("after %v only the first %d of %d indices have a worker", patience, running, total)
	}
	complete()
	r := rand.New(rand.NewPCG(1, 2))
	for range *workerFaults {
		i := r.IntN(len(members))
		switch m := members[i]; r.IntN(3) {
		case 0:
			m.Process.Kill()
			m.Wait()
			members[i] = start(i)
		case 1:
			m.Process.Signal(syscall.SIGTERM)
			m.Wait()
			members[i] = start(i)
		case 2:
			m.cut.Store(true)
			time.AfterFunc(3*time.Second, func() { m.cut.Store(false) })
		}
		complete()
	}
	if text, err := os.ReadFile(filepath.Join(dir, "overlaps")); err == nil {
		t.Errorf("overlaps:\n%s", text)
	}
	starts, _ := os.ReadFile(filepath.Join(dir, "starts"))
	t.Logf("%d members, %d faults, %d workers started", len(members), *workerFaults, bytes.Count(starts, []byte("\n")))
}

// alive reports whether the process runs, and is not only waiting to be waited for.
func alive(pid string) bool {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if os.IsNotExist(err) {
		return exec.Command("kill", "-0", pid).Run() == nil && !exists("/proc/self/status")
	}
	return err == nil && !bytes.Contains(status, []byte("State:\tZ"))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

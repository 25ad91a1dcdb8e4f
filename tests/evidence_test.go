//go:build unix

package tests

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

// systemOf is a connection on which one hears which connections to the server end.
func systemOf(t testing.TB, srv *embedded.Server) *nats.Conn {
	t.Helper()
	nc, err := srv.Connect(nats.UserInfo("system", ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// TestKilledProcessIsSeenAtOnce kills members of a server in this process, one by one:
// their indices are the others' long before the lease of 10 s has run out. One that is
// only stopped keeps them.
func TestKilledProcessIsSeenAtOnce(t *testing.T) {
	t.Parallel()
	srv, err := embedded.Start(within(t, patience), embedded.Config{StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	const lease = 10 * time.Second
	tune := func(c *fabric.Config) { c.Lease, c.System = lease, systemOf(t, srv) }
	watch := join(t, srv.ClientURL(), "watch", tune)
	g, err := balance.Join(within(t, patience), watch, balance.Config{Group: "default", Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	const victims = 4
	ps := map[fabric.PID]*process{}
	for i := range victims {
		pid := fabric.PID(fmt.Sprint("v", i))
		ps[pid] = launch(t, srv.ClientURL(), "run", "-i", string(pid), "-n", "2", "--ttl", lease.String(), "-o", "ndjson")
		ps[pid].await("an index", 0, func(e event) bool { return e.Type == "balanced" && e.First >= 0 })
	}
	reasons := map[fabric.PID]fabric.Reason{}
	total := func(want int) {
		t.Helper()
		for s, err := range g.Shares(within(t, patience)) {
			if err != nil {
				t.Fatalf("total never %d: %v", want, err)
			}
			if s.Total == want {
				return
			}
		}
	}
	total(2 + 2*victims)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for c, err := range watch.Changes(within(t, patience)) {
			if err != nil {
				return
			}
			if c.Kind == fabric.Failed {
				if reasons[c.Member.PID] = c.Reason; len(reasons) == victims-1 {
					return
				}
			}
		}
	}()
	stopped := fabric.PID("v0")
	ps[stopped].signal(syscall.SIGSTOP)
	for i := range victims - 1 {
		pid := fabric.PID(fmt.Sprint("v", i+1))
		began := time.Now()
		ps[pid].signal(syscall.SIGKILL)
		total(2*victims - 2*i)
		took := time.Since(began)
		t.Logf("%s: others have its indices %v after the kill", pid, took.Round(time.Millisecond))
		if took > lease/2 {
			t.Errorf("%s: others have its indices %v after the kill, of a lease of %v", pid, took, lease)
		}
	}
	<-done
	for pid, reason := range reasons {
		if reason != fabric.ConnClosed || pid == stopped {
			t.Errorf("%s failed by %q, want %q of those killed", pid, reason, fabric.ConnClosed)
		}
	}
	ps[stopped].signal(syscall.SIGCONT)
}

//go:build unix

package tests

import (
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// resources are what the members use, by PID, and what the servers do together.
type resources struct {
	goroutines, files map[string]int
	serverFiles       int
	consumers         int
}

// resources waits for what each member says of itself, and asks the servers.
func (nm *nemesis) resources() resources {
	nm.t.Helper()
	r := resources{goroutines: map[string]int{}, files: map[string]int{}}
	ctx := within(nm.t, patience)
	for _, m := range nm.members {
		for {
			s, ok := nm.log.used(m.process())
			if ok {
				r.goroutines[string(m.pid)], r.files[string(m.pid)] = s.Procs, s.Files
				break
			}
			if ctx.Err() != nil {
				nm.t.Fatalf("%s does not say what it uses", m.process())
			}
			pauseFor(ctx, 100*time.Millisecond)
		}
	}
	for i := range 3 {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", nm.c.PID(i)))
		if err == nil { // else there is no such system
			r.serverFiles += len(files)
		}
	}
	js, err := jetstream.New(nm.c.Connect())
	if err != nil {
		nm.t.Fatal(err)
	}
	account, err := js.AccountInfo(ctx)
	if err != nil {
		nm.t.Fatal(err)
	}
	r.consumers = account.Consumers
	return r
}

// checkResources fails if members or servers have more goroutines or files than fresh
// ones, or if consumers were left behind.
func (nm *nemesis) checkResources(fresh resources) {
	nm.t.Helper()
	now := nm.resources()
	most := 0 // who coordinates, leads or waits to, and so has more of them, changes
	for _, n := range fresh.goroutines {
		most = max(most, n)
	}
	for pid, n := range now.goroutines {
		if n > most+most/10+5 {
			nm.t.Errorf("member %s has %d goroutines, nobody had more than %d", pid, n, most)
		}
		if n := now.files[pid]; n > fresh.files[pid]+3 {
			nm.t.Errorf("member %s has %d open files, had %d", pid, n, fresh.files[pid])
		}
	}
	// Files of the store are opened as they are needed.
	if now.serverFiles > fresh.serverFiles*3/2+30 {
		nm.t.Errorf("the servers have %d open files together, had %d", now.serverFiles, fresh.serverFiles)
	}
	if now.consumers > fresh.consumers {
		nm.t.Errorf("there are %d consumers, were %d", now.consumers, fresh.consumers)
	}
	nm.t.Logf("resources at the beginning %+v, at the end %+v", fresh, now)
}

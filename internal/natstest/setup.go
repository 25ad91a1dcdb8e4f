package natstest

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Setup says more about a cluster of processes.
type Setup struct {
	// Versions of nats-server ("2.12.7"), by member; "" and what is not there is the
	// one that this module requires. Others are fetched and built, which takes a
	// minute the first time.
	Versions []string
	// Proxied has the members reach each other through proxies: [Cluster.Route].
	Proxied bool
	// Seed of the proxies.
	Seed uint64
	// SyncAlways has the members sync every write, as embedded servers do.
	SyncAlways bool
	// Disk is told the directory of each member before it is used.
	Disk func(member int, dir string)
	// Config is appended to each member's configuration.
	Config string
}

// StartSetup is like [StartProcesses] with more to say.
func StartSetup(t testing.TB, n int, setup Setup) *Cluster {
	t.Helper()
	bins := make([]string, n)
	for i := range bins {
		version := ""
		if i < len(setup.Versions) {
			version = setup.Versions[i]
		}
		bins[i] = mustBuild(t, version)
	}
	return newCluster(t, n, setup, func(nd *node) host {
		return &process{bin: bins[nd.index], conf: nd.conf, addr: nd.addr(), log: filepath.Join(nd.dir, "log")}
	})
}

func mustBuild(t testing.TB, version string) string {
	t.Helper()
	bin, err := serverBinary(t, version)
	if err != nil {
		t.Fatalf("natstest: build nats-server %s: %v", version, err)
	}
	return bin
}

// routesOf are the routes of member i: as they are, or through proxies.
func (c *Cluster) routesOf(i int, routes []string) []string {
	if !c.setup.Proxied {
		return routes
	}
	if c.route == nil || i == 0 {
		c.route = map[[2]int]*Proxy{}
	}
	own := slices.Clone(routes)
	for j := range routes {
		if i == j {
			continue
		}
		p := NewProxy(c.t, strings.TrimPrefix(routes[j], "nats://"), c.setup.Seed+uint64(10*i+j))
		c.route[[2]int{i, j}] = p
		own[j] = "nats://" + p.Addr()
	}
	return own
}

// Route is the proxy of the connections that member from made to member to. Two
// members have one of each, and use both.
func (c *Cluster) Route(from, to int) *Proxy { return c.route[[2]int{from, to}] }

// hidden keeps members from telling each other, and clients, ways around the proxies:
// nobody listens on the address that they advertise.
func hidden(setup Setup) string {
	if !setup.Proxied {
		return ""
	}
	return `, advertise: "127.0.0.1:1", no_advertise: true `
}

// Upgrade stops member i and starts it as another version, on the store it had.
func (c *Cluster) Upgrade(i int, version string) {
	c.t.Helper()
	h, ok := c.nodes[i].host.(*process)
	if !ok {
		c.t.Fatal("natstest: only a process has another version")
	}
	bin := mustBuild(c.t, version)
	c.Stop(i)
	h.bin = bin
	c.Start(i)
}

// Pause stops the process of member i in the middle of what it does, Resume lets it go
// on.
func (c *Cluster) Pause(i int)  { c.pause(i, true) }
func (c *Cluster) Resume(i int) { c.pause(i, false) }

func (c *Cluster) pause(i int, stop bool) {
	c.t.Helper()
	h, ok := c.nodes[i].host.(*process)
	if !ok {
		c.t.Fatal("natstest: only a process can be paused")
	}
	if err := h.pause(stop); err != nil {
		c.t.Fatalf("natstest: pause member %d: %v", i, err)
	}
}

// LameDuck has member i hand over what it leads, and end.
func (c *Cluster) LameDuck(i int) {
	c.t.Helper()
	nd := c.nodes[i]
	h, ok := nd.host.(*process)
	if !ok {
		c.t.Fatal("natstest: only a process can be a lame duck")
	}
	if err := lameDuck(h.cmd.Process); err != nil {
		c.t.Fatalf("natstest: lame duck %d: %v", i, err)
	}
	timer := time.NewTimer(formTimeout)
	defer timer.Stop()
	select {
	case <-h.done:
	case <-timer.C:
		h.kill()
		c.t.Errorf("natstest: member %d is a lame duck for more than %v", i, formTimeout)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	nd.up = false
}

// DeleteStream deletes a stream, as an administrator might.
func (c *Cluster) DeleteStream(name string) {
	c.t.Helper()
	c.retry("stream "+name+" is not deleted", func(ctx context.Context) error {
		return c.api(ctx, "STREAM.DELETE."+name, nil)
	})
}

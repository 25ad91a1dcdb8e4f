package natstest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// formTimeout bounds every wait for the cluster to agree. The first formation
	// needs all servers and takes more than five seconds at times.
	formTimeout = 90 * time.Second
	// apiTimeout bounds one question to the cluster.
	apiTimeout = 3 * time.Second
	retryWait  = 100 * time.Millisecond
)

// Cluster is several NATS servers that form one JetStream cluster, over TCP on
// loopback and in real time, for one test. Members are numbered from 0. All are
// stopped at the end of the test.
type Cluster struct {
	t     testing.TB
	setup Setup
	nodes []*node
	route map[[2]int]*Proxy // from and to

	mu    sync.Mutex // guards conns and the state of every node
	conns []*nats.Conn
}

// node is one member. Its files, name and ports outlive the server that runs on them.
type node struct {
	name        string
	dir         string
	conf        string
	port, route int
	host        host
	up          bool
	index       int
}

// host runs the server of one node: in this process or in one of its own.
type host interface {
	// start returns when the server accepts connections.
	start() error
	// stop ends the server in an orderly way, kill without; both return when it
	// is down.
	stop()
	kill()
	logs() string
}

// StartCluster starts n servers in this process and returns when they have formed a
// cluster. [Cluster.Kill] has to be gentle here: for the real thing, see
// [StartProcesses].
func StartCluster(t testing.TB, n int) *Cluster {
	t.Helper()
	return newCluster(t, n, Setup{}, func(nd *node) host { return &inProcess{conf: nd.conf, log: &log{}} })
}

// StartProcesses is like [StartCluster] with an operating system process per server,
// built from the nats-server this module requires.
func StartProcesses(t testing.TB, n int) *Cluster {
	t.Helper()
	return StartSetup(t, n, Setup{})
}

func newCluster(t testing.TB, n int, setup Setup, newHost func(*node) host) *Cluster {
	t.Helper()
	c := &Cluster{t: t, setup: setup}
	t.TempDir() // is removed after close, which reads the logs
	t.Cleanup(c.close)
	var err error
	for range 3 { // another process may take a port before we do
		if err = c.form(n, newHost); err == nil {
			c.WaitReady()
			return c
		}
		c.stopAll()
	}
	t.Fatalf("natstest: start cluster: %v", err)
	return nil
}

// form makes n nodes and starts them.
func (c *Cluster) form(n int, newHost func(*node) host) error {
	ports, err := freePorts(2 * n)
	if err != nil {
		return err
	}
	dir := c.t.TempDir()
	var routes []string
	for _, p := range ports[n:] {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", p))
	}
	c.nodes = nil
	for i := range n {
		nd := &node{index: i, name: fmt.Sprintf("n%d", i), dir: filepath.Join(dir, fmt.Sprintf("n%d", i)), port: ports[i], route: ports[n+i]}
		nd.conf = filepath.Join(nd.dir, "nats.conf")
		if err := nd.write(c.routesOf(i, routes), c.setup); err != nil {
			return err
		}
		nd.host = newHost(nd)
		c.nodes = append(c.nodes, nd)
	}
	for _, nd := range c.nodes {
		if err := c.startNode(nd); err != nil {
			return err
		}
	}
	return nil
}

// write writes the configuration. The routes include the node's own, so that all
// nodes agree on how many there are.
func (nd *node) write(routes []string, setup Setup) error {
	if err := os.MkdirAll(nd.dir, 0o700); err != nil {
		return err
	}
	if setup.Disk != nil {
		setup.Disk(nd.index, nd.dir)
	}
	sync := "2m" // nats-server's default
	if setup.SyncAlways {
		sync = "always"
	}
	conf := fmt.Sprintf(`server_name: %q
listen: %q
jetstream { store_dir: %q, max_memory_store: 256MB, max_file_store: 1GB, sync_interval: %s }
%s
%s
`, nd.name, nd.addr(), filepath.ToSlash(nd.dir), sync, nd.cluster(routes, setup), setup.Config)
	return os.WriteFile(nd.conf, []byte(conf), 0o600)
}

// cluster is the part of the configuration about the others. A server that is alone has
// none: it would wait for them.
func (nd *node) cluster(routes []string, setup Setup) string {
	if len(routes) == 1 {
		return ""
	}
	return fmt.Sprintf(`cluster { name: natstest, listen: "127.0.0.1:%d", routes: [ %s ] %s}`, nd.route, strings.Join(routes, ", "), hidden(setup))
}

func (nd *node) addr() string { return fmt.Sprintf("127.0.0.1:%d", nd.port) }
func (nd *node) url() string  { return "nats://" + nd.addr() }

// URLs returns the address of every member, running or not.
func (c *Cluster) URLs() []string {
	var urls []string
	for _, nd := range c.nodes {
		urls = append(urls, nd.url())
	}
	return urls
}

// URL returns the addresses of all members, separated by commas.
func (c *Cluster) URL() string { return strings.Join(c.URLs(), ",") }

// Connect returns a connection to any member, closed when the test ends.
func (c *Cluster) Connect(opts ...nats.Option) *nats.Conn {
	c.t.Helper()
	nc, err := nats.Connect(c.URL(), append([]nats.Option{nats.ErrorHandler(ignoreAsync)}, opts...)...)
	if err != nil {
		c.t.Fatalf("natstest: connect: %v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, nc)
	return nc
}

// PID is the process of member i.
func (c *Cluster) PID(i int) int { return c.nodes[i].host.(*process).cmd.Process.Pid }

// Kill ends member i without warning, with SIGKILL if it is a process, and returns
// when it is gone. Killing twice is harmless.
func (c *Cluster) Kill(i int) { c.end(i, host.kill) }

// Stop ends member i in an orderly way and returns when it is down.
func (c *Cluster) Stop(i int) { c.end(i, host.stop) }

// Start starts member i again, on the store it had. It returns when the server
// accepts connections; [Cluster.WaitReady] tells when it is part of the cluster.
func (c *Cluster) Start(i int) {
	c.t.Helper()
	if err := c.startNode(c.nodes[i]); err != nil {
		c.t.Fatalf("natstest: start member %d: %v", i, err)
	}
}

func (c *Cluster) startNode(nd *node) error {
	c.mu.Lock()
	up := nd.up
	c.mu.Unlock()
	if up {
		return nil
	}
	if err := nd.host.start(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	nd.up = true
	return nil
}

func (c *Cluster) end(i int, how func(host)) {
	nd := c.nodes[i]
	c.mu.Lock()
	up := nd.up
	nd.up = false
	c.mu.Unlock()
	if up {
		how(nd.host)
	}
}

func (c *Cluster) stopAll() {
	var wg sync.WaitGroup
	for i := range c.nodes {
		wg.Go(func() { c.Stop(i) })
	}
	wg.Wait()
}

func (c *Cluster) close() {
	c.mu.Lock()
	conns := c.conns
	c.conns = nil
	c.mu.Unlock()
	for _, nc := range conns {
		nc.Close()
	}
	c.stopAll()
	if !c.t.Failed() {
		return
	}
	for _, nd := range c.nodes {
		c.t.Logf("natstest: end of the log of %s:\n%s", nd.name, tail(nd.host.logs(), 25))
	}
}

// running returns the addresses of the members that run.
func (c *Cluster) running() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var urls []string
	for _, nd := range c.nodes {
		if nd.up {
			urls = append(urls, nd.url())
		}
	}
	return urls
}

// WaitReady waits until every running member takes part: each answers, and a stream
// with a replica on each (of five at most) can be made and is current. It needs a
// majority.
func (c *Cluster) WaitReady() {
	c.t.Helper()
	c.retry("cluster not ready", c.probe)
}

// LeaderOf returns the member that leads a stream, and waits for there to be one.
func (c *Cluster) LeaderOf(stream string) int {
	c.t.Helper()
	leader := -1
	c.retry("no leader of stream "+stream, func(ctx context.Context) error {
		var info jetstream.StreamInfo
		if err := c.api(ctx, "STREAM.INFO."+stream, &info); err != nil {
			return err
		}
		if info.Cluster == nil {
			return errors.New("stream is not clustered")
		}
		leader = slices.IndexFunc(c.nodes, func(nd *node) bool { return nd.name == info.Cluster.Leader })
		if leader < 0 {
			return fmt.Errorf("leader is %q", info.Cluster.Leader)
		}
		return nil
	})
	return leader
}

// StepDown makes the leader of a stream step down. Who leads then is up to the
// cluster; [Cluster.LeaderOf] waits for it.
func (c *Cluster) StepDown(stream string) {
	c.t.Helper()
	c.retry("leader of stream "+stream+" does not step down", func(ctx context.Context) error {
		return c.api(ctx, "STREAM.LEADER.STEPDOWN."+stream, nil)
	})
}

// retry calls f until it succeeds, each time with a context of its own.
func (c *Cluster) retry(what string, f func(context.Context) error) {
	c.t.Helper()
	deadline := time.Now().Add(formTimeout)
	tick := time.NewTicker(retryWait)
	defer tick.Stop()
	for {
		ctx, cancel := context.WithTimeout(c.t.Context(), apiTimeout)
		err := f(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("natstest: %s after %v: %v", what, formTimeout, err)
		}
		<-tick.C
	}
}

// control connects to running members for the package's own purposes.
func (c *Cluster) control(urls ...string) (*nats.Conn, error) {
	return nats.Connect(strings.Join(urls, ","), nats.NoReconnect(), nats.Timeout(apiTimeout), nats.ErrorHandler(ignoreAsync))
}

// api asks the JetStream API and decodes the answer into out, unless that is nil.
func (c *Cluster) api(ctx context.Context, subject string, out any) error {
	nc, err := c.control(c.running()...)
	if err != nil {
		return err
	}
	defer nc.Close()
	msg, err := nc.RequestWithContext(ctx, "$JS.API."+subject, nil)
	if err != nil {
		return err
	}
	var failed struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &failed); err != nil {
		return err
	}
	if failed.Error != nil {
		return failed.Error
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(msg.Data, out)
}

// probe makes a stream on all running members and deletes it.
func (c *Cluster) probe(ctx context.Context) error {
	urls := c.running()
	if len(urls) == 0 {
		return errors.New("no member runs")
	}
	var js jetstream.JetStream
	for _, url := range urls {
		nc, err := c.control(url)
		if err != nil {
			return err
		}
		defer nc.Close()
		if js, err = jetstream.New(nc); err != nil {
			return err
		}
		if _, err := js.AccountInfo(ctx); err != nil {
			return err
		}
	}
	const name = "natstest_probe"
	st, err := js.CreateStream(ctx, jetstream.StreamConfig{
		Name: name, Subjects: []string{"natstest.probe"}, Replicas: min(len(urls), 5), Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		return err
	}
	err = current(ctx, st)
	// Also when ctx has ended: the next probe starts afresh.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiTimeout)
	defer cancel()
	return errors.Join(err, js.DeleteStream(ctx, name))
}

// current waits until all replicas of a stream have what the leader has.
func current(ctx context.Context, st jetstream.Stream) error {
	tick := time.NewTicker(retryWait)
	defer tick.Stop()
	for {
		info, err := st.Info(ctx)
		if err != nil {
			return err
		}
		if info.Cluster == nil || !slices.ContainsFunc(info.Cluster.Replicas,
			func(p *jetstream.PeerInfo) bool { return !p.Current || p.Offline }) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("replicas not current: %w", ctx.Err())
		}
	}
}

func ignoreAsync(*nats.Conn, *nats.Subscription, error) {}

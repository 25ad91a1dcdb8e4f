//go:build linux

package peers

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/embedded"
)

var etcdPath = flag.String("etcd", "etcd", "the etcd to compare with, a path or a name in PATH")

// A candidate stands for an election. Its methods are called one at a time, but for
// standing, which is called while campaign is under way.
type candidate interface {
	// campaign returns when it leads.
	campaign(ctx context.Context) error
	// standing returns when it waits for another to lose the leadership.
	standing(ctx context.Context) error
	resign(ctx context.Context) error
	// leave ends it; its process is not counted on to be alive.
	leave(ctx context.Context) error
}

// An electorate is a way to elect leaders.
type electorate struct {
	name   string
	server string                   // the role of its server
	able   func(time.Duration) bool // with that lease
	stand  func(ctx context.Context, url, election, id string, lease time.Duration) (candidate, error)
	lean   bool // who is killed is the program leader, and not this test with all its systems
}

var electorates = []electorate{
	{"fabric", "nats", atLeast(time.Second), standFabric, true},
	{"proof", "nats", atLeast(time.Second), standProof, true},
	{"unsynced", "nats-unsynced", atLeast(time.Second), standFabric, true},
	{"proof-unsynced", "nats-unsynced", atLeast(time.Second), standProof, true},
	{"proof-large", "nats", atLeast(time.Second), standProof, false},
	{"protocol", "nats", func(lease time.Duration) bool { return lease < time.Second }, standProtocol, false},
	{"plainkv", "nats", atLeast(0), standPlain, false},
	{"etcd", "etcd", atLeast(time.Second), standEtcd, false},
}

func atLeast(shortest time.Duration) func(time.Duration) bool {
	return func(lease time.Duration) bool { return lease >= shortest }
}

func electorateOf(name string) (electorate, error) {
	for _, e := range electorates {
		if e.name == name {
			return e, nil
		}
	}
	return electorate{}, fmt.Errorf("no electorate %q", name)
}

// A contest is one electorate with its server running.
type contest struct {
	electorate
	b     *testing.B
	url   string
	srv   *process
	lease time.Duration
	took  []time.Duration
	exits []time.Duration // of the processes that were killed
	sizes []int           // their resident memory, in MiB
	seq   int
}

// contests starts, for each electorate that can have the lease, a server of its own.
func contests(b *testing.B, lease time.Duration, names ...string) (all []*contest) {
	b.Helper()
	for _, name := range names {
		e, err := electorateOf(name)
		if err != nil {
			b.Fatal(err)
		}
		if !e.able(lease) {
			continue
		}
		c := &contest{electorate: e, b: b, lease: lease}
		if e.server == "etcd" {
			path, err := exec.LookPath(*etcdPath)
			if err != nil {
				b.Logf("NO FIGURES OF ETCD: %v", err)
				continue
			}
			c.srv, c.url = startEtcd(b, path, lease)
		} else {
			c.srv = play(b, e.server, b.TempDir())
			c.url = c.srv.say
		}
		all = append(all, c)
	}
	return all
}

// startEtcd starts an etcd of one server that syncs each write, as it does by default.
// It grants no lease under 1.5 election timeouts, which are 1 s by default, so that for
// leases under 2 s it gets shorter ones; alone, it elects nobody.
func startEtcd(b *testing.B, path string, lease time.Duration) (p *process, url string) {
	b.Helper()
	client, peer := "http://"+freeAddr(b), "http://"+freeAddr(b)
	args := []string{
		"--name", "one", "--data-dir", b.TempDir(), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "one=" + peer, "--log-level", "error",
	}
	if lease < 2*time.Second {
		args = append(args, "--heartbeat-interval", "50", "--election-timeout", "500")
	}
	p = run(b, exec.Command(path, args...))
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	if err := awaitEtcd(ctx, client); err != nil {
		b.Fatal(err)
	}
	return p, client
}

func freeAddr(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// playServer returns what plays a NATS server with JetStream in a directory. It syncs
// each write, as an embedded one does, or now and then, as nats-server does by default.
func playServer(syncs bool) func(context.Context, []string) (url string, err error) {
	return func(ctx context.Context, args []string) (url string, err error) {
		srv, err := embedded.Start(ctx, embedded.Config{
			StoreDir: args[0], Options: func(o *server.Options) { o.SyncAlways = syncs },
		})
		if err != nil {
			return "", err
		}
		return srv.ClientURL(), nil
	}
}

// playLeader leads an election until it is killed: its electorate, server, the
// election, its id and lease.
func playLeader(ctx context.Context, args []string) (string, error) {
	c, err := standBy(ctx, args)
	if err != nil {
		return "", err
	}
	return "", c.campaign(ctx)
}

func standBy(ctx context.Context, args []string) (candidate, error) {
	e, err := electorateOf(args[0])
	if err != nil {
		return nil, err
	}
	lease, err := time.ParseDuration(args[4])
	if err != nil {
		return nil, err
	}
	return e.stand(ctx, args[1], args[2], args[3], lease)
}

// playStander has one candidate of each of many elections: the arguments of playLeader,
// with the number of elections and whether it comes to lead them before it is ready.
func playStander(ctx context.Context, args []string) (string, error) {
	n, err := strconv.Atoi(args[5])
	if err != nil {
		return "", err
	}
	e, err := electorateOf(args[0])
	if err != nil {
		return "", err
	}
	lease, err := time.ParseDuration(args[4])
	if err != nil {
		return "", err
	}
	return "", standMany(ctx, e, args[1], args[3], lease, n, args[6] == "lead")
}

// candidate stands in this process, under an id that nobody had.
func (c *contest) candidate(ctx context.Context) candidate {
	c.b.Helper()
	c.seq++
	cand, err := c.stand(ctx, c.url, "x", fmt.Sprint("c", c.seq), c.lease)
	if err != nil {
		c.b.Fatalf("%s: %v", c.name, err)
	}
	return cand
}

// leader starts a process that leads.
func (c *contest) leader() *process {
	c.b.Helper()
	c.seq++
	id := fmt.Sprint("p", c.seq)
	if c.lean {
		return start(c.b, exec.Command(leanLeader(c.b), c.url, "x", id, c.lease.String()))
	}
	return play(c.b, "leader", c.name, c.url, "x", id, c.lease.String())
}

// won campaigns in the background: the time at which it leads.
func (c *contest) won(ctx context.Context, cand candidate) <-chan time.Time {
	won := make(chan time.Time, 1)
	go func() {
		if err := cand.campaign(ctx); err != nil {
			c.b.Errorf("%s: campaign: %v", c.name, err)
		}
		won <- time.Now()
	}()
	if err := cand.standing(ctx); err != nil {
		c.b.Fatalf("%s: standing: %v", c.name, err)
	}
	return won
}

// connect is a connection to a NATS server that lives as long as its process, or until
// it is closed.
func connect(url string) (*nats.Conn, error) { return nats.Connect(url, nats.Name("peers")) }

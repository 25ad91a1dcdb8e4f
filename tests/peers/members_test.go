//go:build linux

package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A membership is a way for processes to know of each other.
type membership struct {
	name string
	// open prepares what the members need, and says where the first is to join.
	open func(b *testing.B) (ground, error)
}

var memberships = []membership{
	{"fabric", func(b *testing.B) (ground, error) { return openFabric(b, true) }},
	{"fabric-lease", func(b *testing.B) (ground, error) { return openFabric(b, false) }},
	{"memberlist-lan", func(*testing.B) (ground, error) { return &gossipGround{kind: "lan"}, nil }},
	{"memberlist-local", func(*testing.B) (ground, error) { return &gossipGround{kind: "local"}, nil }},
}

// A ground is where members meet.
type ground interface {
	// join joins as name, and has saw told how many members it sees, itself included,
	// whenever that changes; one call at a time. The first join has returned before any
	// other is called.
	join(ctx context.Context, name string, saw func(members int)) (member, error)
	// victim starts a process that is a member.
	victim(b *testing.B, name string) *process
	// messages is how many have been sent so far, by members and servers.
	messages() (int64, error)
}

type member interface {
	leave(ctx context.Context) error
}

// fabricGround is a server in this process.
type fabricGround struct {
	url    string
	system *nats.Conn
	joined atomic.Int64
	tells  bool // the first two members hear system
}

func openFabric(b *testing.B, tells bool) (ground, error) {
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{StoreDir: b.TempDir()})
	if err != nil {
		return nil, err
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.Context()), patience)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			b.Error(err)
		}
	})
	system, err := srv.Connect(nats.UserInfo("system", ""))
	if err != nil {
		return nil, err
	}
	b.Cleanup(system.Close)
	return &fabricGround{url: srv.ClientURL(), system: system, tells: tells}, nil
}

type fabricMember struct {
	node *fabric.Node
	stop context.CancelFunc
	done chan struct{}
}

func (g *fabricGround) join(ctx context.Context, name string, saw func(int)) (member, error) {
	cfg := fabric.Config{Cluster: "peers", PID: fabric.PID(name), URL: g.url, Inbox: fabric.Inbox{Off: true}}
	if g.tells && g.joined.Add(1) <= 2 {
		cfg.System = g.system
	}
	node, err := fabric.Join(ctx, cfg)
	if err != nil {
		return nil, err
	}
	m := &fabricMember{node: node, done: make(chan struct{})}
	ctx, m.stop = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(m.done)
		here := map[fabric.PID]bool{}
		for c, err := range node.Changes(ctx) {
			if err != nil {
				return
			}
			before := len(here)
			switch c.Kind {
			case fabric.Joined:
				here[c.Member.PID] = true
			case fabric.Left, fabric.Failed:
				delete(here, c.Member.PID)
			}
			if len(here) != before {
				saw(len(here))
			}
		}
	}()
	return m, nil
}

func (m *fabricMember) leave(ctx context.Context) error {
	m.stop()
	<-m.done
	return m.node.Leave(ctx)
}

func (g *fabricGround) victim(b *testing.B, name string) *process {
	return play(b, "member", "fabric", g.url, name)
}

// messages counts what the server took in and gave out.
func (g *fabricGround) messages() (int64, error) {
	in, out, err := natstest.Traffic(g.system)
	return in + out, err
}

// gossipGround is memberlist: the first member is whom the others ask.
type gossipGround struct {
	kind string // "lan" or "local"
	sent atomic.Int64
	mu   sync.Mutex // guards first
	// first is the address of the first member.
	first string
}

type gossipMember struct{ list *memberlist.Memberlist }

// A counter counts the datagrams that a member sends.
type counter struct {
	*memberlist.NetTransport
	sent *atomic.Int64
}

func (c counter) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	c.sent.Add(1)
	return c.NetTransport.WriteToAddress(b, a)
}

// An observer counts the members that one member sees. memberlist calls it under a lock.
type observer struct {
	members int
	saw     func(int)
}

func (o *observer) NotifyJoin(*memberlist.Node)   { o.members++; o.saw(o.members) }
func (o *observer) NotifyLeave(*memberlist.Node)  { o.members--; o.saw(o.members) }
func (o *observer) NotifyUpdate(*memberlist.Node) {}

// gossip starts a member with the defaults of its kind, on a port of its own.
func gossip(kind, name string, sent *atomic.Int64, saw func(int)) (*memberlist.Memberlist, error) {
	cfg := memberlist.DefaultLANConfig()
	if kind == "local" {
		cfg = memberlist.DefaultLocalConfig()
	}
	cfg.Name, cfg.BindAddr, cfg.BindPort, cfg.AdvertisePort = name, "127.0.0.1", 0, 0
	cfg.LogOutput = io.Discard
	cfg.Events = &observer{saw: saw}
	t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{cfg.BindAddr}, Logger: log.New(io.Discard, "", 0)})
	if err != nil {
		return nil, err
	}
	cfg.Transport = counter{t, sent}
	return memberlist.Create(cfg)
}

func (g *gossipGround) join(ctx context.Context, name string, saw func(int)) (member, error) {
	list, err := gossip(g.kind, name, &g.sent, saw)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	first := g.first
	if first == "" {
		g.first = list.LocalNode().FullAddress().Addr
	}
	g.mu.Unlock()
	for first != "" {
		if _, err = list.Join([]string{first}); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil, errors.Join(err, list.Shutdown())
		}
	}
	return &gossipMember{list}, nil
}

// leave tells the others, as memberlist's documentation has it, and then stops.
func (m *gossipMember) leave(context.Context) error {
	err := m.list.Leave(10 * time.Second)
	return errors.Join(err, m.list.Shutdown())
}

func (g *gossipGround) victim(b *testing.B, name string) *process {
	return play(b, "member", "memberlist-"+g.kind, g.first, name)
}

func (g *gossipGround) messages() (int64, error) { return g.sent.Load(), nil }

// playMember is a member until it is killed: of what, where, and its name.
func playMember(ctx context.Context, args []string) (string, error) {
	var g ground
	switch args[0] {
	case "fabric":
		g = &fabricGround{url: args[1]}
	case "memberlist-lan":
		g = &gossipGround{kind: "lan", first: args[1]}
	case "memberlist-local":
		g = &gossipGround{kind: "local", first: args[1]}
	default:
		return "", fmt.Errorf("no membership %q", args[0])
	}
	_, err := g.join(ctx, args[2], func(int) {})
	return "", err
}

// playSpinners takes twice the processor time that there is, until it ends.
func playSpinners(context.Context, []string) (string, error) {
	n := 2 * runtime.NumCPU()
	runtime.GOMAXPROCS(n)
	for range n {
		go spin()
	}
	return "", nil
}

func spin() {
	for n := uint64(1); n != 0; n += 2 { // never
	}
}

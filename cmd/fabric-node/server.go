package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natsfabric/natsfabric/embedded"
)

const (
	defaultAddr = "127.0.0.1:4222"
	// startTimeout bounds a server's start, which recovers what its store holds.
	startTimeout = 30 * time.Second
	// stopTimeout bounds a server's stop at least: a member of a cluster hands over
	// what it leads.
	stopTimeout = 10 * time.Second
)

// master are the flags of the server that `server` and --embedded start. Nothing
// else starts one: two hosts that each helped themselves would both lead.
type master struct {
	embedded    bool
	nodes       int
	addr, store string

	name, listen  string
	routes        []string
	leafs, domain string
	hub           []string

	credentials            string
	tlsCert, tlsKey, tlsCA string
	tlsVerify, insecure    bool
}

// masterFlags are those that need --embedded where there is such a flag.
var masterFlags = []string{
	"addr", "store", "name", "listen", "routes", "leafs", "hub", "domain",
	"credentials", "tls-cert", "tls-key", "tls-ca", "tls-verify", "insecure",
}

func (m *master) bind(fs *pflag.FlagSet) {
	fs.StringVar(&m.addr, "addr", defaultAddr, "`HOST:PORT` that the server listens on")
	fs.StringVar(&m.store, "store", "", "`directory` of the server's streams (default a temporary one)")
	fs.StringVar(&m.name, "name", "", "server's `name` in a cluster; never to be used again once it was removed (default host and port)")
	fs.StringVar(&m.listen, "listen", "", "`HOST:PORT` for the other servers of the cluster")
	fs.StringSliceVar(&m.routes, "routes", nil, "`HOST:PORT,...` that all 3 or 5 servers of the cluster listen on, this one included")
	fs.StringVar(&m.leafs, "leafs", "", "`HOST:PORT` for leaf nodes")
	fs.StringSliceVar(&m.hub, "hub", nil, "be a leaf node of the servers whose --leafs are `HOST:PORT,...`, and store nothing")
	fs.StringVar(&m.domain, "domain", "", "JetStream domain of --leafs and --hub (default \"hub\")")
	fs.StringVar(&m.credentials, "credentials", "", "`file` of the passwords that clients and servers show, made if absent (default in --store)")
	fs.StringVar(&m.tlsCert, "tls-cert", "", "certificate `file` of the server")
	fs.StringVar(&m.tlsKey, "tls-key", "", "key `file` of the certificate")
	fs.StringVar(&m.tlsCA, "tls-ca", "", "`file` of the authorities that other servers' and clients' certificates come from")
	fs.BoolVar(&m.tlsVerify, "tls-verify", false, "clients must show a certificate instead of credentials")
	fs.BoolVar(&m.insecure, "insecure", false, "ask nobody for credentials, and listen beyond loopback without TLS")
}

func (m *master) bindEmbedded(fs *pflag.FlagSet) {
	fs.BoolVar(&m.embedded, "embedded", false, "start a NATS server in this process, and stop it after leaving")
	m.bind(fs)
}

// masters are the servers that one process started.
type masters struct {
	app     *app
	servers []*embedded.Server
	files   []string // contexts for other processes, removed at the end
	dir     string   // a temporary one, removed at the end
}

// url lists the servers for a client in this process; it holds the password.
func (ms *masters) url() string {
	return ms.join(func(s *embedded.Server) string { return s.ClientURL() })
}

// shown lists them for everyone.
func (ms *masters) shown() string {
	return ms.join(func(s *embedded.Server) string { return "nats://" + s.Addr() })
}

func (ms *masters) join(f func(*embedded.Server) string) string {
	var all []string
	for _, s := range ms.servers {
		all = append(all, f(s))
	}
	return strings.Join(all, ",")
}

func (m *master) start(ctx context.Context, a *app) (*masters, error) {
	ms := &masters{app: a}
	cfgs, err := m.configs(ms)
	if err == nil {
		err = ms.start(ctx, cfgs)
	}
	if err != nil {
		return nil, errors.Join(err, ms.stop(ctx))
	}
	ms.publish(m.tlsCA)
	return ms, nil
}

// configs are those of the servers to start: one, or the whole of a cluster.
func (m *master) configs(ms *masters) ([]embedded.Config, error) {
	cfg := embedded.Config{
		Addr: m.addr, StoreDir: m.store, Name: m.name, Listen: m.listen, Routes: m.routes, Leafs: m.leafs,
		Hub: m.hub, Domain: m.domain, Credentials: m.credentials, Insecure: m.insecure, Logger: ms.app.log,
	}
	var err error
	if cfg.TLS, err = m.tls(); err != nil {
		return nil, err
	}
	if len(m.routes) > 1 && m.name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, usagef("--name is needed: %w", err)
		}
		_, port, _ := net.SplitHostPort(m.listen)
		cfg.Name = host + "-" + port
	}
	if m.nodes <= 1 {
		return []embedded.Config{cfg}, nil
	}
	if len(m.routes) > 0 || m.listen != "" || len(m.hub) > 0 || m.leafs != "" || m.name != "" {
		return nil, usagef("--nodes %d starts all servers of a cluster in this process; --routes is for one of them on each host", m.nodes)
	}
	return m.laptop(ms, cfg)
}

// laptop are the configurations of a cluster in one process: client addresses that
// follow --addr, routes on free ports of loopback.
func (m *master) laptop(ms *masters, cfg embedded.Config) ([]embedded.Config, error) {
	host, text, err := net.SplitHostPort(m.addr)
	if err != nil {
		return nil, usagef("--addr %q: %w", m.addr, err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, usagef("--addr %q: the port is not a number", m.addr)
	}
	if m.store == "" {
		if ms.dir, err = os.MkdirTemp("", "fabric-node-"); err != nil {
			return nil, err
		}
	}
	dir := cmp.Or(m.store, ms.dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", embedded.ErrStore, err)
	}
	if !m.insecure {
		cfg.Credentials = cmp.Or(m.credentials, filepath.Join(dir, "credentials.json"))
	}
	if cfg.Routes, err = freeAddrs(m.nodes); err != nil {
		return nil, err
	}
	var cfgs []embedded.Config
	for i, route := range cfg.Routes {
		c := cfg
		c.Name = "n" + strconv.Itoa(i+1)
		c.Listen, c.StoreDir = route, filepath.Join(dir, c.Name)
		if port != 0 {
			c.Addr = net.JoinHostPort(host, strconv.Itoa(port+i))
		}
		cfgs = append(cfgs, c)
	}
	return cfgs, nil
}

// freeAddrs returns addresses of loopback on which nobody listens now, below the range
// from which systems take the ports of outgoing connections.
func freeAddrs(n int) (addrs []string, err error) {
	for range 100 * n {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(12_000+rand.IntN(20_000))))
		if err != nil {
			continue
		}
		defer l.Close() // all are taken until all are known
		if addrs = append(addrs, l.Addr().String()); len(addrs) == n {
			return addrs, nil
		}
	}
	return nil, errors.New("no free ports")
}

// tls reads the certificate, if there is one.
func (m *master) tls() (*tls.Config, error) {
	if m.tlsCert == "" && m.tlsKey == "" && m.tlsCA == "" && !m.tlsVerify {
		return nil, nil
	}
	if m.tlsCert == "" || m.tlsKey == "" {
		return nil, usagef("TLS needs --tls-cert and --tls-key")
	}
	cert, err := tls.LoadX509KeyPair(m.tlsCert, m.tlsKey)
	if err != nil {
		return nil, usagef("--tls-cert %s, --tls-key %s: %w", m.tlsCert, m.tlsKey, err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if m.tlsCA != "" {
		text, err := os.ReadFile(m.tlsCA)
		if err != nil {
			return nil, usagef("--tls-ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(text) {
			return nil, usagef("--tls-ca %s holds no certificate", m.tlsCA)
		}
		cfg.ClientCAs = cfg.RootCAs
	}
	if m.tlsVerify {
		if m.tlsCA == "" {
			return nil, usagef("--tls-verify needs --tls-ca")
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return cfg, nil
}

// start starts them all, and waits until they can serve.
func (ms *masters) start(ctx context.Context, cfgs []embedded.Config) error {
	for _, cfg := range cfgs {
		begin, cancel := context.WithTimeout(ctx, startTimeout)
		srv, err := embedded.Start(begin, cfg)
		cancel()
		if err != nil {
			return fmt.Errorf("start a server on %s: %w", cfg.Addr, err)
		}
		ms.servers = append(ms.servers, srv)
	}
	for _, srv := range ms.servers {
		if err := srv.AwaitCluster(ctx); err != nil {
			return err
		}
	}
	return nil
}

// publish leaves the way in where this user's other processes find it. They do
// without, if that cannot be.
func (ms *masters) publish(ca string) {
	for _, srv := range ms.servers {
		if srv.Addr() == "" {
			continue
		}
		ms.app.addSecrets(srv.ClientURL())
		path, err := writeLogin(srv.Addr(), ms.url(), srv.Domain(), ca)
		if err != nil {
			ms.app.log.Warn("no context for other processes", "err", err)
			continue
		}
		ms.files = append(ms.files, path)
	}
}

// context is the file that others may name, or "".
func (ms *masters) context() string {
	if len(ms.files) == 0 {
		return ""
	}
	return ms.files[0]
}

// stop stops all of them at once: there is nobody left to hand over to.
func (ms *masters) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(ms.app.opts.timeout, stopTimeout))
	defer cancel()
	errs := make([]error, len(ms.servers))
	var wg sync.WaitGroup
	for i, srv := range ms.servers {
		wg.Go(func() { errs[i] = srv.Shutdown(ctx) })
	}
	wg.Wait()
	for _, path := range ms.files {
		errs = append(errs, os.Remove(path))
	}
	if ms.dir != "" {
		errs = append(errs, os.RemoveAll(ms.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop the server: %w", err)
	}
	return nil
}

// server is where a member joins: its own server with --embedded, else a running
// one. The function it returns stops what it started; call it after leaving.
func (a *app) server(ctx context.Context, m *master, fs *pflag.FlagSet) (endpoint, func() error, error) {
	if !m.embedded {
		if slices.ContainsFunc(masterFlags, fs.Changed) {
			return endpoint{}, nil, usagef("--addr, --store and the other flags of a server need --embedded")
		}
		ep, err := a.endpoint()
		return ep, func() error { return nil }, err
	}
	if a.opts.serverFlag {
		return endpoint{}, nil, usagef("--embedded starts a server, --server names another: choose one")
	}
	ms, err := m.start(ctx, a)
	if err != nil {
		return endpoint{}, nil, err
	}
	a.note("server ready at %s", ms.shown())
	srv := ms.servers[0]
	ep := endpoint{url: srv.ClientURL(), domain: srv.Domain()}
	if m.tlsCert != "" { // whose names need not include this address
		ep = endpoint{url: srv.Addr(), domain: srv.Domain(), nats: []nats.Option{nats.InProcessServer(srv)}}
	}
	if ep.system, err = srv.Connect(nats.UserInfo("system", "")); err != nil {
		a.log.Debug("crashes are seen by leases only", "err", err) // whoever has set up accounts
		return ep, func() error { return ms.stop(ctx) }, nil
	}
	return ep, func() error { ep.system.Close(); return ms.stop(ctx) }, nil
}

func newServer(a *app) *cobra.Command {
	var m master
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the NATS server that a fabric needs, or one of its cluster",
		Long: `Run a NATS server with JetStream until INT or TERM. It keeps its streams in
--store; without one they are gone when it stops.

The server asks for random credentials. Processes of this user on this machine find
them by themselves; others are given the context file that "ready" names, or
--credentials. An address beyond loopback needs TLS, or --insecure.

With --nodes 3 the process runs a cluster of three servers, to try one out. On three
hosts, each runs one with the same --routes and --credentials. The first start needs
all of them, after that a majority serves. A server by itself cannot become one of a
cluster: see fabric-node server migrate.`,
		Example: `  fabric-node server
  fabric-node server --store /var/lib/fabric --addr 127.0.0.1:4333
  fabric-node server --nodes 3               # a cluster, for a laptop
  fabric-node server --addr 127.0.0.1:0 -o ndjson | head -1   # a free port
  fabric-node server --store s --addr :4222 --listen :6222 --routes a:6222,b:6222,c:6222 --credentials f --tls-cert c --tls-key k --tls-ca ca`,
		Args: exactly(0, 0, "[--store DIR] [--addr HOST:PORT] [--nodes 3 | --routes HOST:PORT,...]"),
		RunE: a.untilSignal(func(ctx context.Context, _ []string) error {
			if m.nodes != 1 && m.nodes != 3 && m.nodes != 5 {
				return usagef("--nodes %d: a cluster has 1, 3 or 5 servers", m.nodes)
			}
			ms, err := m.start(ctx, a)
			if err != nil {
				if ctx.Err() != nil {
					return nil // a signal came before the cluster
				}
				return err
			}
			out := a.events()
			err = out.emit(serverEvent{Type: "ready", URL: ms.shown(), Context: ms.context()})
			if err == nil {
				<-ctx.Done()
				err = out.emit(serverEvent{Type: "stopping"})
			}
			if stopErr := ms.stop(ctx); stopErr != nil {
				return stopErr
			}
			return err
		}),
	}
	cmd.AddCommand(newMigrate(a), newRemove(a))
	m.bind(cmd.Flags())
	cmd.Flags().IntVar(&m.nodes, "nodes", 1, "run a cluster of `N` servers in this process: 1, 3 or 5")
	return cmd
}

type serverEvent struct {
	Type    string `json:"type"`
	URL     string `json:"url,omitempty"`
	Context string `json:"context,omitempty"`
}

func (e serverEvent) line() (string, string) {
	if e.URL == "" {
		return e.Type, ""
	}
	text := fmt.Sprintf("nats-server %s at %s", server.VERSION, e.URL)
	if e.Context != "" {
		text += "; others: --context " + e.Context
	}
	return e.Type, text
}

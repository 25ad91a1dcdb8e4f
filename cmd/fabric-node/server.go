package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natsfabric/natsfabric/embedded"
)

const (
	defaultAddr = "127.0.0.1:4222"
	// startTimeout bounds a server's start, which recovers what its store holds.
	startTimeout = 30 * time.Second
)

// master are the flags of the server that `server` and --embedded start. Nothing
// else starts one: two hosts that each helped themselves would both lead.
type master struct {
	embedded    bool
	addr, store string
}

func (m *master) bind(fs *pflag.FlagSet) {
	fs.StringVar(&m.addr, "addr", defaultAddr, "`HOST:PORT` that the server listens on")
	fs.StringVar(&m.store, "store", "", "`directory` of the server's streams (default a temporary one)")
}

func (m *master) bindEmbedded(fs *pflag.FlagSet) {
	fs.BoolVar(&m.embedded, "embedded", false, "start a NATS server in this process, and stop it after leaving")
	m.bind(fs)
}

func (m *master) start(ctx context.Context, a *app) (*embedded.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	srv, err := embedded.Start(ctx, embedded.Config{Addr: m.addr, StoreDir: m.store, Logger: a.log})
	if err != nil {
		return nil, fmt.Errorf("start a server on %s: %w", m.addr, err)
	}
	return srv, nil
}

func (m *master) stop(ctx context.Context, a *app, srv *embedded.Server) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.opts.timeout)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		return fmt.Errorf("stop the server: %w", err)
	}
	return nil
}

// server is where a member joins: its own server with --embedded, else a running
// one. The function it returns stops what it started; call it after leaving.
func (a *app) server(ctx context.Context, m *master, fs *pflag.FlagSet) (endpoint, func() error, error) {
	if !m.embedded {
		if fs.Changed("addr") || fs.Changed("store") {
			return endpoint{}, nil, usagef("--addr and --store need --embedded")
		}
		ep, err := a.endpoint()
		return ep, func() error { return nil }, err
	}
	if a.opts.serverFlag {
		return endpoint{}, nil, usagef("--embedded starts a server, --server names another: choose one")
	}
	srv, err := m.start(ctx, a)
	if err != nil {
		return endpoint{}, nil, err
	}
	a.note("server ready at %s", srv.ClientURL())
	return endpoint{url: srv.ClientURL()}, func() error { return m.stop(ctx, a, srv) }, nil
}

func newServer(a *app) *cobra.Command {
	var m master
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the NATS server that a fabric needs, and nothing else",
		Long: `Run a NATS server with JetStream until INT or TERM. It keeps its streams in
--store; without one they are gone when it stops.`,
		Example: `  fabric-node server
  fabric-node server --store /var/lib/fabric --addr 127.0.0.1:4333
  fabric-node server --addr 127.0.0.1:0 -o ndjson | head -1   # a free port`,
		Args: exactly(0, 0, "[--store DIR] [--addr HOST:PORT]"),
		RunE: a.untilSignal(func(ctx context.Context, _ []string) error {
			srv, err := m.start(ctx, a)
			if err != nil {
				return err
			}
			out := a.events()
			err = out.emit(serverEvent{Type: "ready", URL: srv.ClientURL()})
			if err == nil {
				<-ctx.Done()
				err = out.emit(serverEvent{Type: "stopping"})
			}
			if stopErr := m.stop(ctx, a, srv); stopErr != nil {
				return stopErr
			}
			return err
		}),
	}
	m.bind(cmd.Flags())
	return cmd
}

type serverEvent struct {
	Type string `json:"type"`
	URL  string `json:"url,omitempty"`
}

func (e serverEvent) line() (string, string) {
	if e.URL == "" {
		return e.Type, ""
	}
	return e.Type, fmt.Sprintf("nats-server %s at %s", server.VERSION, e.URL)
}

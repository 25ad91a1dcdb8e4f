package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/synadia-io/orbit.go/natscontext"
	"golang.org/x/net/proxy"

	"github.com/natsfabric/natsfabric/fabric"
)

// An endpoint is a NATS server, and how to be let in there.
type endpoint struct {
	url  string
	nats []nats.Option
	// control are the options of a second connection, for the bucket; nil if there is one.
	control []nats.Option
	domain  string
	system  *nats.Conn // of a server in this process, to hear which connections end; or nil
}

// endpoint finds the server: --server, FABRIC_SERVER, the named context, NATS_URL,
// the default. The NATS_* variables, by the names that the nats command gave
// them, hold the credentials; those of a named context yield to them. A server on
// this machine that this user started with fabric-node has left its own.
func (a *app) endpoint() (endpoint, error) {
	var ep endpoint
	if a.opts.context != "" {
		var err error
		if ep, err = contextEndpoint(a.opts.context); err != nil {
			return endpoint{}, err
		}
	}
	ep.url = cmp.Or(a.opts.server, ep.url, os.Getenv("NATS_URL"), fabric.DefaultURL)
	if err := checkServers(ep.url); err != nil {
		return endpoint{}, err
	}
	opts, err := credentials(os.Getenv)
	if err != nil {
		return endpoint{}, err
	}
	if path := ownLogin(ep.url); path != "" && a.opts.context == "" && len(opts) == 0 {
		own, err := contextEndpoint(path)
		if err != nil {
			return endpoint{}, err
		}
		own.url = ep.url
		return own, nil
	}
	ep.nats = append(ep.nats, opts...)
	ep.control, err = credentials(func(name string) string { return os.Getenv(controlName(name)) })
	if ep.control != nil {
		ep.control = append(slices.Clone(ep.nats), ep.control...) // TLS, proxies
	}
	return ep, err
}

// controlName is the variable with what NATS_<x> says, for the second connection.
func controlName(name string) string {
	return "FABRIC_CONTROL_" + strings.TrimPrefix(name, "NATS_")
}

// credentials turns the NATS_* variables into options.
func credentials(getenv func(string) string) ([]nats.Option, error) {
	var opts []nats.Option
	for _, name := range []string{"NATS_CREDS", "NATS_NKEY", "NATS_CERT", "NATS_KEY", "NATS_CA"} {
		if path := getenv(name); path != "" {
			if _, err := os.Stat(path); err != nil {
				return nil, usagef("%s: %w", name, err)
			}
		}
	}
	user, password := getenv("NATS_USER"), getenv("NATS_PASSWORD")
	switch {
	case user != "" && password != "":
		opts = append(opts, nats.UserInfo(user, password))
	case user != "": // as the nats command has it: a user alone is a token
		opts = append(opts, nats.Token(user))
	case password != "":
		return nil, usagef("NATS_PASSWORD is set, NATS_USER is not")
	}
	if token := getenv("NATS_TOKEN"); token != "" {
		opts = append(opts, nats.Token(token))
	}
	if path := getenv("NATS_CREDS"); path != "" {
		opts = append(opts, nats.UserCredentials(path))
	}
	if path := getenv("NATS_NKEY"); path != "" {
		nkey, err := nats.NkeyOptionFromSeed(path)
		if err != nil {
			return nil, usagef("NATS_NKEY %s: %w", path, err)
		}
		opts = append(opts, nkey)
	}
	jwt, seed := getenv("NATS_JWT"), getenv("NATS_SEED")
	if (jwt == "") != (seed == "") {
		return nil, usagef("NATS_JWT and NATS_SEED belong together; one is not set")
	}
	if jwt != "" {
		opts = append(opts, nats.UserJWTAndSeed(jwt, seed))
	}
	cert, key := getenv("NATS_CERT"), getenv("NATS_KEY")
	if (cert == "") != (key == "") {
		return nil, usagef("NATS_CERT and NATS_KEY belong together; one is not set")
	}
	if cert != "" {
		opts = append(opts, nats.ClientCert(cert, key))
	}
	if ca := getenv("NATS_CA"); ca != "" {
		opts = append(opts, nats.RootCAs(ca))
	}
	if socks := getenv("NATS_SOCKS_PROXY"); socks != "" {
		dialer, err := socksDialer(socks)
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.SetCustomDialer(dialer))
	}
	return opts, nil
}

func socksDialer(address string) (proxy.Dialer, error) {
	bad := usagef("NATS_SOCKS_PROXY %q is not of the form socks5://host:1080", redactServer(address))
	u, err := url.Parse(address)
	if err != nil {
		return nil, bad
	}
	dialer, err := proxy.FromURL(u, proxy.Direct)
	if err != nil {
		return nil, bad
	}
	return dialer, nil
}

// errSeen ends natscontext's attempt to connect once its options have been read.
var errSeen = errors.New("options seen")

// contextEndpoint reads a NATS context. The module only offers to connect with
// it, but a node dials by itself, so the options are taken over from the attempt.
func contextEndpoint(name string) (endpoint, error) {
	var seen nats.Options
	_, _, err := natscontext.Connect(name, func(o *nats.Options) error {
		seen = *o
		return errSeen
	})
	if !errors.Is(err, errSeen) {
		return endpoint{}, usagef("NATS context %q: %w", name, err).see("nats context ls")
	}
	take := func(o *nats.Options) error {
		o.User, o.Password, o.Token = seen.User, seen.Password, seen.Token
		o.UserJWT, o.Nkey, o.SignatureCB = seen.UserJWT, seen.Nkey, seen.SignatureCB
		o.Secure, o.TLSConfig, o.TLSHandshakeFirst = seen.Secure, seen.TLSConfig, seen.TLSHandshakeFirst
		o.TLSCertCB, o.RootCAsCB = seen.TLSCertCB, seen.RootCAsCB
		o.CustomDialer, o.InboxPrefix = seen.CustomDialer, seen.InboxPrefix
		return nil
	}
	domain, err := contextDomain(name)
	if err != nil {
		return endpoint{}, usagef("NATS context %q: %w", name, err)
	}
	return endpoint{url: strings.Join(seen.Servers, ","), nats: []nats.Option{take}, domain: domain}, nil
}

// contextDomain reads the one setting that is no option of the connection.
func contextDomain(name string) (string, error) {
	path := name
	if !filepath.IsAbs(name) {
		parent := os.Getenv("XDG_CONFIG_HOME")
		if parent == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", err
			}
			parent = filepath.Join(home, ".config")
		}
		path = filepath.Join(parent, "nats", "context", name+".json")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var settings natscontext.Settings
	if err := json.Unmarshal(text, &settings); err != nil {
		return "", err
	}
	return settings.JSDomain, nil
}

// config is the part of a node's Config that the global flags decide.
func (a *app) config(ep endpoint, passive bool) fabric.Config {
	return fabric.Config{
		Cluster: a.opts.cluster,
		Env:     a.opts.env,
		PID:     fabric.PID(a.opts.pid),
		URL:     ep.url,
		NATS:    ep.nats,
		Control: ep.control,
		Role:    a.opts.role,
		Domain:  ep.domain,
		System:  ep.system,
		Lease:   a.opts.ttl,
		Passive: passive,
		Logger:  a.log,
	}
}

// slowJoin is how long a join may take without a word. One that waits for a lease of a
// dead predecessor, or for servers without a majority, takes longer.
const slowJoin = 2 * time.Second

// join joins, or says that there is no server: a command that looks at something at
// once, a member when it has tried for --timeout, because it may come up before its
// server does. Waiting for a dead predecessor's lease is not counted, so that a
// restart under a PID works.
func (a *app) join(ctx context.Context, cfg fabric.Config) (*fabric.Node, error) {
	limit := a.opts.timeout
	if !cfg.Passive {
		limit += 3 * a.opts.ttl
	}
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	probed := make(chan struct{})
	var reached atomic.Bool
	go func() {
		defer close(probed)
		if err := a.probe(ctx, cfg); err != nil {
			cancel(err)
		} else {
			reached.Store(true)
		}
	}()
	defer time.AfterFunc(slowJoin, func() {
		if reached.Load() {
			a.note("connected, but not in %s/%s yet: trying for %v in all; see: fabric-node doctor %s", cfg.Cluster, cfg.Env, limit, a.where())
		}
	}).Stop()
	node, err := fabric.Join(ctx, cfg)
	if err != nil {
		cancel(err) // the probe, too, if the reason is another
	}
	<-probed
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, fabric.ErrConnect) && exitCode(err) != exitUsage {
		return nil, cause
	}
	return node, err
}

// probe returns nil when a server lets us in, or when ctx ends; else it is ErrConnect.
func (a *app) probe(ctx context.Context, cfg fabric.Config) error {
	opts := append(cfg.NATS[:len(cfg.NATS):len(cfg.NATS)],
		nats.Name("fabric-node probe"), nats.NoReconnect(), nats.Timeout(a.opts.timeout))
	told := false
	for began := time.Now(); ; {
		nc, err := nats.Connect(cfg.URL, opts...)
		if err == nil {
			nc.Close()
			return nil
		}
		if cfg.Passive || time.Since(began) > a.opts.timeout || !errors.Is(err, nats.ErrNoServers) {
			return fmt.Errorf("%w to %s: %w", fabric.ErrConnect, redactServer(cfg.URL), err)
		}
		select {
		case <-ctx.Done(): // perhaps for what is wrong with any server
			return nil
		case <-time.After(100 * time.Millisecond):
		}
		if !told {
			a.note("no server at %s yet: trying for %v", redactServer(cfg.URL), a.opts.timeout)
			told = true
		}
	}
}

// observe joins as a passive node, runs f, and leaves.
func (a *app) observe(ctx context.Context, f func(*fabric.Node) error) error {
	ep, err := a.endpoint()
	if err != nil {
		return err
	}
	node, err := a.join(ctx, a.config(ep, true))
	if err != nil {
		return err
	}
	defer a.leave(ctx, node, a.opts.timeout)
	return f(node)
}

// leave leaves within limit, also when ctx is over.
func (a *app) leave(ctx context.Context, node *fabric.Node, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if err := node.Leave(ctx); err != nil {
		return fmt.Errorf("leave: %w; the others notice when the lease of %v has run out", err, a.opts.ttl)
	}
	return nil
}

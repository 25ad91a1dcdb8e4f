package embedded

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strconv"

	"github.com/nats-io/nats-server/v2/server"
)

// None as the address means: no listener, connections from inside the process only.
const None = "none"

const loopback = "127.0.0.1"

// Config says where a server listens and where it keeps its data. The zero value is
// a server for this machine that forgets everything when it is shut down.
type Config struct {
	// Addr is HOST:PORT. Default: a free port of 127.0.0.1; port 0 is a free port
	// too, an empty host means all interfaces. [None] does without a listener. An
	// address beyond loopback requires authentication, set through Options.
	Addr string

	// StoreDir is where streams are kept; created if need be. Default: a private
	// temporary directory, removed by Shutdown.
	StoreDir string

	// Name is the server's name, without spaces. Default: a random one. Members of
	// a cluster need a name that stays the same.
	Name string

	// Logger receives the server's log. Debug messages are on if the logger wants
	// them when the server starts. Default: none.
	Logger *slog.Logger

	// Options has the last word on the server's options: authentication, TLS,
	// limits, clusters; o.ProcessConfigFile reads a nats-server configuration
	// file. Listeners it adds are on loopback unless given a host, and signal
	// handling stays off.
	Options func(o *server.Options)
}

// options translates the Config. A listener without a host is on loopback, where
// nats-server's default is all interfaces.
func (cfg Config) options(ctx context.Context) (*server.Options, error) {
	o := &server.Options{
		ServerName: cfg.Name,
		StoreDir:   cfg.StoreDir,
		JetStream:  true,
		SyncAlways: true,
	}
	switch cfg.Addr {
	case None:
		o.DontListen = true
	case "":
		o.Port = server.RANDOM_PORT
	default:
		host, port, err := net.SplitHostPort(cfg.Addr)
		if err != nil {
			return nil, fmt.Errorf("%w: address: %w", ErrConfig, err)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%w: address %q: port is not a number from 0 to 65535", ErrConfig, cfg.Addr)
		}
		o.Host = cmp.Or(host, "0.0.0.0")
		o.Port = cmp.Or(int(n), server.RANDOM_PORT)
	}
	if cfg.Options != nil {
		cfg.Options(o)
	}
	o.NoSigs = true
	for _, host := range []*string{
		&o.Host, &o.HTTPHost, &o.Cluster.Host, &o.Gateway.Host, &o.LeafNode.Host, &o.Websocket.Host, &o.MQTT.Host,
	} {
		*host = cmp.Or(*host, loopback)
	}
	if err := checkProtected(ctx, o); err != nil {
		return nil, err
	}
	return o, nil
}

// checkProtected refuses listeners that anybody could reach and use.
func checkProtected(ctx context.Context, o *server.Options) error {
	clients := o.NoAuthUser == "" && (o.Username != "" || o.Authorization != "" ||
		len(o.Users) > 0 || len(o.Nkeys) > 0 || len(o.TrustedOperators) > 0 || len(o.TrustedKeys) > 0 ||
		o.AuthCallout != nil || o.CustomClientAuthentication != nil ||
		mutual(o.TLSConfig) && !o.AllowNonTLS)
	web := o.Websocket.NoAuthUser == "" &&
		(clients || o.Websocket.Username != "" || o.Websocket.Token != "" || mutual(o.Websocket.TLSConfig))
	mqtt := o.MQTT.NoAuthUser == "" &&
		(clients || o.MQTT.Username != "" || o.MQTT.Token != "" || mutual(o.MQTT.TLSConfig))
	leafs := clients || o.LeafNode.Username != "" || len(o.LeafNode.Users) > 0 ||
		o.LeafNode.Nkey != "" || mutual(o.LeafNode.TLSConfig)
	for _, l := range []struct {
		what      string
		on        bool
		host      string
		protected bool
	}{
		{"client", !o.DontListen, o.Host, clients},
		{"websocket", o.Websocket.Port != 0, o.Websocket.Host, web},
		{"mqtt", o.MQTT.Port != 0, o.MQTT.Host, mqtt},
		{"leaf node", o.LeafNode.Port != 0, o.LeafNode.Host, leafs},
		{"cluster", o.Cluster.Port != 0, o.Cluster.Host, o.Cluster.Username != "" || mutual(o.Cluster.TLSConfig)},
		{"gateway", o.Gateway.Port != 0, o.Gateway.Host, o.Gateway.Username != "" || mutual(o.Gateway.TLSConfig)},
		{"monitoring", o.HTTPPort != 0, o.HTTPHost, false},
		{"monitoring", o.HTTPSPort != 0, o.HTTPHost, mutual(o.TLSConfig)},
		{"profiling", o.ProfPort != 0, o.Host, false},
	} {
		if !l.on || l.protected {
			continue
		}
		local, err := isLoopback(ctx, l.host)
		if err != nil {
			return fmt.Errorf("%w: %s address: %w", ErrConfig, l.what, err)
		}
		if !local {
			return fmt.Errorf("%w: %s listener on %q", ErrUnprotected, l.what, l.host)
		}
	}
	return nil
}

// mutual reports whether every client must show a certificate.
func mutual(c *tls.Config) bool {
	return c != nil && c.ClientAuth == tls.RequireAndVerifyClientCert
}

// isLoopback reports whether all addresses of host are on this machine's loopback
// interface.
func isLoopback(ctx context.Context, host string) (bool, error) {
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback(), nil
	}
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		if !a.IP.IsLoopback() {
			return false, nil
		}
	}
	return true, nil
}

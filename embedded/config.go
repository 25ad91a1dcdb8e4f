package embedded

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// None as the address means: no listener, connections from inside the process only.
const None = "none"

const loopback = "127.0.0.1"

// Defaults of what a server takes from its clients. Options may change them.
const (
	maxConnections   = 4096
	maxSubscriptions = 65_536 // of one connection
	maxPending       = 64 << 20
	maxMemory        = 256 << 20
	maxStore         = 4 << 30
	authTimeout      = 2 * time.Second
	pingInterval     = 5 * time.Second
	// reconnectReports is which of the attempts to reach another server is logged, once
	// a second each.
	reconnectReports = 60
)

// Config says where a server listens, where it keeps its data, whom it lets in, and
// with whom it forms a cluster. The zero value is a server for this process and
// whoever it tells, that forgets everything when it is shut down.
type Config struct {
	// Addr is HOST:PORT for clients. Default: a free port of 127.0.0.1; port 0 is a
	// free port too, an empty host means all interfaces. [None] does without a
	// listener. An address beyond loopback requires authentication and TLS.
	Addr string

	// StoreDir is where streams are kept; created if need be. Default: a private
	// temporary directory, removed by Shutdown.
	StoreDir string

	// Name is the server's name, without spaces. Default: a random one. A member of
	// a cluster needs one that is its own for good: the name of a member that was
	// removed must never be used again.
	Name string

	// Cluster is the name of the cluster. Default "fabric". Servers with different
	// ones refuse each other.
	Cluster string

	// Listen is HOST:PORT for the other members of the cluster.
	Listen string

	// Routes are the Listen addresses of all members of the cluster, this one
	// included: none or one for a server by itself, else three or five. The first
	// formation needs all of them; after it a majority serves. A server by itself
	// cannot become a member later without a migration of its store.
	Routes []string

	// Leafs is HOST:PORT for leaf nodes. A server that has it gives its JetStream
	// the name Domain.
	Leafs string

	// Hub makes the server a leaf node: it keeps nothing itself and passes on what
	// its clients say to the servers whose Leafs addresses these are. Such a server
	// may come and go; any number of them may be there.
	Hub []string

	// Domain is the JetStream domain of a server with Leafs or Hub. Default "hub".
	// Clients of a leaf node need it: see [Server.Domain].
	Domain string

	// Credentials is the path of a JSON file with the user and password that
	// clients must show, and with the passwords of the user "system" and of the
	// other servers. If there is no such file it is made, with random ones,
	// readable by this user only; a file that others may read is refused. The
	// servers of a cluster and its leaf nodes need the same one. Default:
	// credentials.json in StoreDir. Connections inside the process need none. It is
	// not used if Options set up authentication.
	Credentials string

	// TLS is used by every listener. Between servers both sides must show a
	// certificate, checked with ClientCAs and RootCAs, of which one may stand for
	// both. Clients must show one if ClientAuth says so.
	TLS *tls.Config

	// Insecure asks nobody for credentials, unless Credentials or Options say so,
	// and lets listeners beyond loopback do without them and without TLS: whoever
	// reaches the server can do everything.
	Insecure bool

	// Logger receives the server's log. Debug messages are on if the logger wants
	// them when the server starts. Default: none.
	Logger *slog.Logger

	// Options has the last word on the server's options: authentication, TLS,
	// limits; o.ProcessConfigFile reads a nats-server configuration file. Listeners
	// it adds are on loopback unless given a host, and signal handling stays off.
	Options func(o *server.Options)
}

// options translates the Config, but for the credentials. A listener without a host
// is on loopback, where nats-server's default is all interfaces.
func (cfg Config) options() (*server.Options, error) {
	o := &server.Options{
		ServerName: cfg.Name,
		StoreDir:   cfg.StoreDir,
		JetStream:  true,
		SyncAlways: true,

		MaxConn:            maxConnections,
		MaxSubs:            maxSubscriptions,
		MaxPending:         maxPending,
		JetStreamMaxMemory: maxMemory,
		JetStreamMaxStore:  maxStore,
		AuthTimeout:        authTimeout.Seconds(),
		PingInterval:       pingInterval,
		MaxPingsOut:        2,

		ReconnectErrorReports: reconnectReports,

		LameDuckGracePeriod: lameDuckGrace,
		LameDuckDuration:    lameDuckDuration,
	}
	switch cfg.Addr {
	case None:
		o.DontListen = true
	case "":
		o.Port = server.RANDOM_PORT
	default:
		var err error
		if o.Host, o.Port, err = listen("address", cfg.Addr); err != nil {
			return nil, err
		}
	}
	if cfg.TLS != nil {
		o.TLSConfig = cfg.TLS.Clone()
		o.TLSTimeout = authTimeout.Seconds()
		o.TLSVerify = mutual(o.TLSConfig)
	}
	if err := cfg.cluster(o); err != nil {
		return nil, err
	}
	if err := cfg.leaf(o); err != nil {
		return nil, err
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
	return o, nil
}

// listen splits HOST:PORT. An empty host is all interfaces, port 0 a free one.
func listen(what, addr string) (string, int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("%w: %s: %w", ErrConfig, what, err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%w: %s %q: port is not a number from 0 to 65535", ErrConfig, what, addr)
	}
	return cmp.Or(host, "0.0.0.0"), cmp.Or(int(n), server.RANDOM_PORT), nil
}

// checkListeners refuses what anybody could reach and use.
func (cfg Config) checkListeners(ctx context.Context, o *server.Options) error {
	if cfg.Insecure {
		return nil
	}
	return checkProtected(ctx, o)
}

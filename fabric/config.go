package fabric

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/token"
)

// Defaults of [Config] and [Inbox].
const (
	DefaultEnv           = "production"
	DefaultURL           = nats.DefaultURL
	DefaultLease         = 5 * time.Second
	DefaultInboxMessages = 65_536
	DefaultInboxBytes    = 64 << 20
	// DefaultRequestTimeout bounds a Request whose context has no deadline.
	DefaultRequestTimeout = 5 * time.Second
)

// Limits of [Config].
const (
	MinLease = time.Second
	MaxLease = kv.MaxLease
	// MaxMeta bounds the keys and values of one member's Meta together, in bytes.
	MaxMeta = lease.MaxMeta
)

// Config says which fabric to join, as whom, and over which connection. The zero
// value of every field but Cluster is its default.
type Config struct {
	// Cluster names the fabric; required. Processes with the same Cluster and Env
	// on the same NATS server or cluster are members of one fabric. Letters,
	// digits and '-'.
	Cluster string

	// Env tells fabrics of one name apart ("production", "dev"). Default
	// [DefaultEnv].
	Env string

	// PID is this process's name in the fabric, held by one process at a time:
	// letters, digits, '_' and '-', at most 64. An integer in decimal form sorts
	// as a number when all PIDs do. Default: a nuid, new in each Join.
	PID PID

	// URL is the NATS server, or several separated by commas. Default
	// [DefaultURL]. It excludes Conn.
	URL string

	// NATS is passed to nats.Connect after the node's own options: credentials,
	// TLS, names. It excludes Conn. Handlers set here are called as well as the
	// node's own.
	NATS []nats.Option

	// Conn is a connection of the caller's, to be used instead of dialling. The
	// node never closes it. What is lost: the reconnect buffer may hold a message
	// back and send it late, pings are as the caller set them (nats.go's default
	// finds a frozen server after 4 to 6 minutes; the node's own after 5/8 of a
	// Lease), a missing permission is reported as a time-out when the connection
	// has an error handler, and other users of the connection share its queue.
	Conn *nats.Conn

	// Control, if not nil, are the options of a second connection to URL, over which
	// the node reaches its bucket, instead of NATS: for a server that keeps messages
	// and the bucket in two accounts, so that no member can forge a sender by an
	// answer of JetStream's. URL then has no user in it. It excludes Conn.
	Control []nats.Option

	// Domain is the JetStream domain, if the server is a leaf node of it.
	Domain string

	// Lease is how long the process is trusted to be alive without being heard:
	// a crashed member is replaced after it, a member cut off from NATS stops
	// trusting its terms and shares before it. It is renewed each 3/8 Lease.
	// Default [DefaultLease]; at least [MinLease], at most [MaxLease], and no
	// longer than the Lease of the fabric's first member, which fixed the longest
	// lease everyone must reckon with. On a cluster of three servers, a Lease
	// under 10 s lapses (and resumes) when the server that leads JetStream is
	// killed, because no write is accepted for 4 to 8 s.
	Lease time.Duration

	// Replicas is how many servers keep the fabric's bucket, when this Join is
	// the one that creates it. Default: 3 on a NATS cluster, 1 on a single
	// server. An existing bucket is left as it is.
	Replicas int

	// Meta is shown to the other members; [MaxMeta] bytes together.
	Meta map[string]string

	// Mode is that of messages without one. Default [Fast].
	Mode Mode

	// NoBatch has every message published by itself. Otherwise small ones to one
	// receiver, that follow each other within microseconds, may share a publish, which
	// is several times as fast; a plain NATS subscriber then sees a frame.
	NoBatch bool

	// System is a connection on which the server's $SYS.ACCOUNT.*.DISCONNECT is heard:
	// one of the system account, or of an account that imports it. With it the node
	// learns at once that a member's connection has ended, and the members that one
	// has [Failed], a tenth of a second after its end instead of a lease. One node with
	// it serves the whole fabric, two are better. The connections of members count that
	// the node made itself and that have the name it gave them. The caller closes it,
	// after Leave. Default: none.
	System *nats.Conn

	// LeaseOnly has this node, while it coordinates the members, hold nobody to have
	// failed before its lease has run out. Otherwise it also goes by evidence: that a
	// member's connection has ended (System), or that the server knows no receiver for
	// it, asked for twice. Give every member the same.
	LeaseOnly bool

	// Offline keeps messages while the connection is down. Default: none.
	Offline Offline

	// Inbox bounds what may wait to be received.
	Inbox Inbox

	// Mailbox says whether and how the node takes messages of Mode [Durable].
	Mailbox Mailbox

	// Passive joins without becoming a member: the node sends, requests and
	// watches under its PID, but is not listed, holds nothing and is sent nothing.
	// A passive node does not claim its PID, creates no bucket and needs none.
	Passive bool

	// Role is the most that the node does, so that it asks for no more permissions
	// than the role has: see [Config.Permissions]. A member leads nothing
	// ([ErrNotCandidate]) and coordinates no roster; a candidate does, and waits for
	// another to create the bucket; an observer is Passive. Default [RoleAdmin]:
	// everything.
	Role Role

	// Micro has the node answer as a service of NATS's micro protocol, so that `nats
	// micro ls`, info, stats and ping show the members: as fab-<cluster>, with the id
	// <env>_<pid> and the metadata cluster, env, pid and incarnation; its endpoints are
	// its inbox and what it serves. It needs the permission to subscribe to $SRV.PING,
	// $SRV.INFO and $SRV.STATS, alone and followed by the name and the id, and to
	// publish to _INBOX.>. Not for a passive node, which is no member.
	Micro bool

	// OnUndeliverable is told of every send that turned out to have no receiver
	// after Send returned. One call at a time; it must not block for long, nor call
	// Flush or Leave. Each is also counted in Stats, and returned by the next Flush.
	OnUndeliverable func(Undeliverable)

	// Logger gets state changes and swallowed errors. Default: discard.
	Logger *slog.Logger
}

// Inbox bounds the messages that were delivered to the node and wait for
// Receive, Messages or Handle, and says what becomes of those that do not fit.
type Inbox struct {
	Messages int   // default DefaultInboxMessages
	Bytes    int64 // default DefaultInboxBytes. No message larger than this is taken
	// PerSender bounds how many messages of one sender may wait, so that one cannot
	// fill the inbox for all. Default: Messages.
	PerSender int
	// OnFull is what becomes of a message that finds a bound reached. Each is counted
	// in [Stats].
	OnFull Policy
	// Off takes no messages at all, for services that only elect or balance:
	// a sender is told ErrUnreachable.
	Off bool
	// MembersOnly takes nothing from [External]. Where members have permissions of
	// their own, nobody is external: what seems to be is an answer of JetStream's that
	// somebody had sent here.
	MembersOnly bool
}

// A Policy is what a full inbox does.
type Policy uint8

const (
	// Block holds back senders of mode Reliable, and of large messages, within a
	// window of their own; what others send is rejected. The default.
	Block Policy = iota
	// Reject refuses the message, whatever its mode. Its sender is told [ErrInboxFull].
	Reject
	// DropNewest drops the message, and tells nobody but who awaits an answer.
	DropNewest
	// DropOldest drops the message that has waited longest instead, and tells nobody.
	// Those of mode Durable are not dropped: where they take all the room, it is
	// DropNewest.
	DropOldest
)

// withDefaults checks c and fills in its defaults.
func (c Config) withDefaults() (Config, error) {
	c.Passive = c.Passive || c.Role == RoleObserver
	if err := c.checkMailbox(); err != nil {
		return c, err
	}
	c.Env = cmp.Or(c.Env, DefaultEnv)
	c.PID = cmp.Or(c.PID, PID(nuid.Next()))
	c.Lease = cmp.Or(c.Lease, DefaultLease)
	c.Role = cmp.Or(c.Role, RoleAdmin)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := token.CheckSpace("cluster", c.Cluster); err != nil {
		return c, err
	}
	if err := token.CheckSpace("environment", c.Env); err != nil {
		return c, err
	}
	if err := token.CheckPID(string(c.PID)); err != nil {
		return c, err
	}
	if c.Domain != "" {
		if err := token.Check("domain", c.Domain); err != nil {
			return c, err
		}
	}
	switch {
	case c.Lease < MinLease || c.Lease > MaxLease:
		return c, &ConfigError{"Lease", fmt.Sprintf("%v is not within %v and %v", c.Lease, MinLease, MaxLease)}
	case c.Role > RoleAdmin:
		return c, &ConfigError{"Role", fmt.Sprintf("%d is none", c.Role)}
	case c.Replicas < 0 || c.Replicas > 5:
		return c, &ConfigError{"Replicas", fmt.Sprintf("%d is not within 1 and 5", c.Replicas)}
	case !c.Mode.known():
		return c, &ConfigError{"Mode", c.Mode.String() + " is none"}
	case c.Micro && c.Passive:
		return c, &ConfigError{"Micro", "a passive node is no member"}
	case c.Inbox.Messages < 0 || c.Inbox.Bytes < 0 || c.Inbox.PerSender < 0:
		return c, &ConfigError{"Inbox", "a bound is negative"}
	case c.Offline.TTL < 0 || c.Offline.Messages < 0 || c.Offline.Bytes < 0:
		return c, &ConfigError{"Offline", "a bound is negative"}
	case c.Inbox.OnFull > DropOldest:
		return c, &ConfigError{"Inbox", fmt.Sprintf("OnFull %d is no policy", c.Inbox.OnFull)}
	}
	var err error
	if c.Meta, err = checkMeta(c.Meta); err != nil {
		return c, err
	}
	return c, c.checkConn()
}

func (c *Config) checkConn() error {
	if c.Conn != nil {
		switch {
		case c.URL != "":
			return &ConfigError{"URL", "it cannot be combined with Conn"}
		case len(c.NATS) > 0:
			return &ConfigError{"NATS", "options cannot be applied to a Conn that exists"}
		case c.Control != nil:
			return &ConfigError{"Control", "a node makes both connections or none"}
		}
		return nil
	}
	c.URL = cmp.Or(c.URL, DefaultURL)
	for i, u := range strings.Split(c.URL, ",") {
		// The text of a URL, and of url.Parse's error, may hold a password.
		u = strings.TrimSpace(u)
		if !strings.Contains(u, "://") {
			u = "nats://" + u
		}
		parsed, err := url.Parse(u)
		if err != nil || parsed.Hostname() == "" {
			return &ConfigError{"URL", fmt.Sprintf("server %d of the list is no URL like nats://host:4222", i+1)}
		}
		if c.Control != nil && parsed.User != nil {
			return &ConfigError{"URL", "with Control, no server has a user in its URL: nats.go would take it for both connections"}
		}
		switch parsed.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return &ConfigError{"URL", fmt.Sprintf("server %d of the list has scheme %q, want nats, tls, ws or wss", i+1, parsed.Scheme)}
		}
	}
	return nil
}

// checkMeta returns a copy of meta that is within [MaxMeta].
func checkMeta(meta map[string]string) (map[string]string, error) {
	size := 0
	for k, v := range meta {
		size += len(k) + len(v)
	}
	if size > MaxMeta {
		return nil, &ConfigError{"Meta", fmt.Sprintf("keys and values have %d bytes together, at most %d are allowed", size, MaxMeta)}
	}
	return maps.Clone(meta), nil
}

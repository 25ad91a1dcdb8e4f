package fabric

import (
	"fmt"
	"log/slog"
	"net/url"
	"strings"
)

// String describes c without its secrets: the user parts of URL, and the options,
// which may hold credentials. So do GoString, LogValue and MarshalJSON: a Config may
// be printed and logged.
func (c Config) String() string {
	return fmt.Sprintf("fabric.Config{%s/%s PID:%q URL:%q}", c.Cluster, c.Env, c.PID, redactURL(c.URL))
}

// GoString is String.
func (c Config) GoString() string { return c.String() }

// LogValue is String, for slog.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON is String.
func (c Config) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%q", c.String()), nil }

// String describes the node.
func (n *Node) String() string {
	return fmt.Sprintf("fabric.Node{%s/%s %s}", n.cfg.Cluster, n.cfg.Env, n.cfg.PID)
}

// GoString is String.
func (n *Node) GoString() string { return n.String() }

// redactURL leaves of a list of servers their schemes and hosts. Where those are not
// told for certain from a piece of a password, nothing is left.
func redactURL(list string) string {
	secret := strings.Contains(list, "@")
	var clear []string
	for one := range strings.SplitSeq(list, ",") {
		scheme, rest, ok := strings.Cut(strings.TrimSpace(one), "://")
		switch {
		case !ok && secret && strings.Contains(list, ","):
			return "***" // a comma in a password makes a list of what is none
		case !ok:
			scheme, rest = "nats", scheme
		}
		user, host, ok := strings.Cut(rest, "@")
		if !ok {
			user, host = "", rest
		}
		u, err := url.Parse(scheme + "://" + host)
		switch {
		case list == "":
			return ""
		case err != nil, u.Host == "", strings.Contains(host, "@"):
			return "***"
		case secret && (strings.ContainsAny(rest, "/?#%") || user == "" && u.Port() == ""):
			return "***"
		}
		host = u.Host
		if user != "" {
			host = "***@" + host
		}
		clear = append(clear, u.Scheme+"://"+host)
	}
	return strings.Join(clear, ",")
}

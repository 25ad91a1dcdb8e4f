package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// servers looks at the versions of all servers that are known.
func (d *doctor) servers() {
	own := d.nc.ConnectedServerVersion()
	versions := map[string][]string{own: {d.nc.ConnectedServerName()}}
	known := d.nc.Servers()
	for _, u := range known {
		if hostOf(u) == hostOf(d.nc.ConnectedUrl()) {
			continue
		}
		nc, err := nats.Connect(d.withUser(u), append(slices.Clone(d.ep.nats), nats.NoReconnect(), nats.Timeout(d.app.opts.timeout), nats.IgnoreDiscoveredServers())...)
		if err != nil {
			d.found.add("routes", warning, "start that server, or take it out of the list", "%s does not answer: %v", redactServer(u), err)
			continue
		}
		if name := nc.ConnectedServerName(); !slices.Contains(versions[nc.ConnectedServerVersion()], name) {
			versions[nc.ConnectedServerVersion()] = append(versions[nc.ConnectedServerVersion()], name)
		}
		if got, want := nc.ConnectedClusterName(), d.nc.ConnectedClusterName(); got != want {
			d.found.add("routes", critical, "name servers of one cluster only", "%s is of cluster %q, this one of %q", redactServer(u), got, want)
		}
		nc.Close()
	}
	d.figure("servers", len(known))
	if len(versions) > 1 {
		d.found.add("versions", warning, "finish the upgrade", "the servers have different versions: %v", versions)
	}
	if older(own, oldestServer) || strings.HasPrefix(own, "2.13.") {
		d.found.add("server", warning, fmt.Sprintf("upgrade it to %s, %s or later", oldestServer, oldestLine),
			"nats-server %s has known holes in its permissions", own)
	} else {
		d.found.add("server", healthy, "", "nats-server %s%s", own, clusterText(d.nc))
	}
}

func hostOf(server string) string {
	u, err := url.Parse(server)
	if err != nil {
		return ""
	}
	return u.Host
}

// withUser gives a server that another one named the user of the one that is
// connected to, as a client that reconnects does.
func (d *doctor) withUser(server string) string {
	u, err := url.Parse(server)
	current, currentErr := url.Parse(d.nc.ConnectedUrl())
	if err != nil || currentErr != nil || u.User != nil {
		return server
	}
	u.User = current.User
	return u.String()
}

func clusterText(nc *nats.Conn) string {
	if name := nc.ConnectedClusterName(); name != "" {
		return " of cluster " + name
	}
	return ""
}

// older compares two versions by their numbers.
func older(a, b string) bool {
	var x, y [3]int
	fmt.Sscanf(a, "%d.%d.%d", &x[0], &x[1], &x[2])
	fmt.Sscanf(b, "%d.%d.%d", &y[0], &y[1], &y[2])
	return slices.Compare(x[:], y[:]) < 0
}

func (d *doctor) payload() {
	switch limit := d.nc.MaxPayload(); {
	case limit < kv.MaxRecord:
		d.found.add("payload", critical, "set max_payload of the server to 1MB", "max_payload is %d bytes: the view of a large fabric does not fit", limit)
	case limit < wantPayload:
		d.found.add("payload", warning, "set max_payload of the server to 1MB", "max_payload is %d bytes, less than the usual 1 MiB", limit)
	default:
		d.found.add("payload", healthy, "", "max_payload is %d bytes", limit)
	}
}

package embedded

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"github.com/nats-io/nats-server/v2/server"
)

// hasAuthentication reports whether somebody has decided whom the server lets in.
func hasAuthentication(o *server.Options) bool { return asksClients(o) || o.NoAuthUser != "" }

// asksClients reports whether a client that shows nothing is refused.
func asksClients(o *server.Options) bool {
	return o.NoAuthUser == "" && (o.Username != "" || o.Authorization != "" ||
		len(o.Users) > 0 || len(o.Nkeys) > 0 || len(o.TrustedOperators) > 0 || len(o.TrustedKeys) > 0 ||
		o.AuthCallout != nil || o.CustomClientAuthentication != nil ||
		mutual(o.TLSConfig) && !o.AllowNonTLS)
}

// A listener is one of a server's doors.
type listener struct {
	what  string
	on    bool
	host  string
	asks  bool        // for credentials or a certificate
	tls   *tls.Config // nil: anybody on the way reads along
	never bool        // belongs on loopback, whatever it asks for
}

func listeners(o *server.Options) []listener {
	clients := asksClients(o)
	client := o.TLSConfig
	if o.AllowNonTLS {
		client = nil
	}
	web, mqtt := &o.Websocket, &o.MQTT
	webAsks := clients || web.Username != "" || web.Token != "" || mutual(web.TLSConfig)
	mqttAsks := clients || mqtt.Username != "" || mqtt.Token != "" || mutual(mqtt.TLSConfig)
	leafAsks := clients || o.LeafNode.Username != "" || len(o.LeafNode.Users) > 0 ||
		o.LeafNode.Nkey != "" || mutual(o.LeafNode.TLSConfig)
	return []listener{
		{"client", !o.DontListen, o.Host, clients, client, false},
		{"websocket", web.Port != 0, web.Host, webAsks && web.NoAuthUser == "", web.TLSConfig, false},
		{"mqtt", mqtt.Port != 0, mqtt.Host, mqttAsks && mqtt.NoAuthUser == "", mqtt.TLSConfig, false},
		{"leaf node", o.LeafNode.Port != 0, o.LeafNode.Host, leafAsks, o.LeafNode.TLSConfig, false},
		{"cluster", o.Cluster.Port != 0, o.Cluster.Host, o.Cluster.Username != "" || mutual(o.Cluster.TLSConfig), o.Cluster.TLSConfig, false},
		{"gateway", o.Gateway.Port != 0, o.Gateway.Host, o.Gateway.Username != "" || mutual(o.Gateway.TLSConfig), o.Gateway.TLSConfig, false},
		{"monitoring", o.HTTPPort != 0, o.HTTPHost, false, nil, true},
		{"monitoring", o.HTTPSPort != 0, o.HTTPHost, mutual(o.TLSConfig), o.TLSConfig, false},
		{"profiling", o.ProfPort != 0, o.Host, false, nil, true},
	}
}

// checkProtected refuses listeners that anybody could reach, and use or listen to.
func checkProtected(ctx context.Context, o *server.Options) error {
	for _, l := range listeners(o) {
		if !l.on || l.asks && l.tls != nil && !l.never {
			continue
		}
		local, err := isLoopback(ctx, l.host)
		if err != nil {
			return fmt.Errorf("%w: %s address: %w", ErrConfig, l.what, err)
		}
		if local {
			continue
		}
		lacks := "asks for no credentials"
		switch {
		case l.never:
			lacks = "belongs on loopback"
		case l.asks:
			lacks = "has no TLS"
		}
		return fmt.Errorf("%w: the %s listener on %q %s", ErrUnprotected, l.what, l.host, lacks)
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

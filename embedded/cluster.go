package embedded

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	defaultCluster = "fabric"
	defaultDomain  = "hub"
	clusterUser    = "cluster"

	// A member that stops gives the others a moment to learn of it, and then closes
	// its clients' connections one by one within lameDuckDuration.
	lameDuckGrace    = 200 * time.Millisecond
	lameDuckDuration = time.Second

	leafReconnect = 250 * time.Millisecond
)

// domain is the JetStream domain, or "" if none is needed.
func (cfg Config) domain() string {
	if cfg.Leafs == "" && len(cfg.Hub) == 0 {
		return ""
	}
	return cmp.Or(cfg.Domain, defaultDomain)
}

// cluster sets what a full member needs.
func (cfg Config) cluster(o *server.Options) error {
	switch n := len(cfg.Routes); {
	case n == 0 && cfg.Listen == "":
		return nil
	case n == 0:
		return fmt.Errorf("%w: Listen needs Routes: the Listen addresses of all members, this one included", ErrConfig)
	case n == 1:
		return nil // of itself: a cluster of one elects nobody, a server by itself need not
	case len(cfg.Hub) > 0:
		return fmt.Errorf("%w: Routes make a full member, Hub makes a leaf node: choose one", ErrConfig)
	case n != 3 && n != 5:
		return fmt.Errorf("%w: %d routes: a cluster has 1, 3 or 5 full members, and every other server is a leaf node", ErrConfig, n)
	case cfg.Name == "":
		return fmt.Errorf("%w: a member of a cluster needs a Name that is its own for good", ErrConfig)
	case cfg.Listen == "":
		return fmt.Errorf("%w: a member of a cluster needs Listen, an address that is among its Routes", ErrConfig)
	}
	host, port, err := listen("Listen", cfg.Listen)
	if err != nil {
		return err
	}
	if port == server.RANDOM_PORT {
		return fmt.Errorf("%w: Listen %q: the others must know the port", ErrConfig, cfg.Listen)
	}
	sorted := slices.Sorted(slices.Values(cfg.Routes))
	if len(slices.Compact(sorted)) != len(cfg.Routes) {
		return fmt.Errorf("%w: an address is twice among the Routes", ErrConfig)
	}
	o.Cluster = server.ClusterOpts{Name: cmp.Or(cfg.Cluster, defaultCluster), Host: host, Port: port}
	if cfg.TLS != nil {
		o.Cluster.TLSConfig = between(cfg.TLS)
		o.Cluster.TLSTimeout = authTimeout.Seconds()
	}
	for _, r := range cfg.Routes {
		u, err := remote("nats-route", r)
		if err != nil {
			return err
		}
		o.Routes = append(o.Routes, u)
	}
	return nil
}

// leaf sets what leaf nodes, and those they connect to, need.
func (cfg Config) leaf(o *server.Options) error {
	o.JetStreamDomain = cfg.domain()
	if cfg.Leafs != "" {
		if len(cfg.Hub) > 0 {
			return fmt.Errorf("%w: a leaf node of a Hub takes no Leafs itself", ErrConfig)
		}
		host, port, err := listen("Leafs", cfg.Leafs)
		if err != nil {
			return err
		}
		o.LeafNode.Host, o.LeafNode.Port = host, port
		if cfg.TLS != nil {
			o.LeafNode.TLSConfig = between(cfg.TLS)
			o.LeafNode.TLSTimeout = authTimeout.Seconds()
		}
	}
	if len(cfg.Hub) == 0 {
		return nil
	}
	o.JetStream, o.JetStreamDomain = false, ""
	o.LeafNode.ReconnectInterval = leafReconnect
	hub := &server.RemoteLeafOpts{}
	for _, h := range cfg.Hub {
		u, err := remote("nats-leaf", h)
		if err != nil {
			return err
		}
		hub.URLs = append(hub.URLs, u)
	}
	if cfg.TLS != nil {
		hub.TLS, hub.TLSConfig, hub.TLSTimeout = true, between(cfg.TLS), authTimeout.Seconds()
	}
	o.LeafNode.Remotes = []*server.RemoteLeafOpts{hub}
	return nil
}

// remote is the URL of another server's HOST:PORT.
func remote(scheme, addr string) (*url.URL, error) {
	if _, port, err := listen("address", addr); err != nil {
		return nil, err
	} else if port == server.RANDOM_PORT {
		return nil, fmt.Errorf("%w: address %q has no port", ErrConfig, addr)
	}
	return &url.URL{Scheme: scheme, Host: addr}, nil
}

// between is the configuration of a connection of two servers, on which both show a
// certificate.
func between(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.ClientAuth = tls.RequireAndVerifyClientCert
	either := func(a, b *x509.CertPool) *x509.CertPool {
		if a == nil {
			return b
		}
		return a
	}
	c.ClientCAs, c.RootCAs = either(c.ClientCAs, c.RootCAs), either(c.RootCAs, c.ClientCAs)
	return c
}

package fabric_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A node on a leaf without JetStream is a member of the fabric on the hub.
func TestLeafNodeWithDomain(t *testing.T) {
	port, err := natstest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	hub := serve(t, &server.Options{
		JetStream: true, StoreDir: t.TempDir(), JetStreamDomain: "hub", ServerName: "hub",
		LeafNode: server.LeafNodeOpts{Host: "127.0.0.1", Port: port},
	})
	remote := &url.URL{Scheme: "nats-leaf", Host: fmt.Sprintf("127.0.0.1:%d", port)}
	leaf := serve(t, &server.Options{
		ServerName: "leaf", LeafNode: server.LeafNodeOpts{Remotes: []*server.RemoteLeafOpts{{URLs: []*url.URL{remote}}}},
	})
	atHub := joinURL(t, hub.ClientURL(), "a", "")
	atLeaf := joinURL(t, leaf.ClientURL(), "b", "hub")
	await(t, atHub, "a", "b")
	await(t, atLeaf, "a", "b")
	if err := atHub.Send(t.Context(), "b", []byte("down")); err != nil {
		t.Fatal(err)
	}
	m, err := atLeaf.Receive(t.Context())
	if err != nil || string(m.Data) != "down" {
		t.Errorf("Receive on the leaf = %v, %v, want down", m, err)
	}
}

func joinURL(t *testing.T, url, pid, domain string) *fabric.Node {
	t.Helper()
	n, err := fabric.Join(t.Context(), fabric.Config{
		Cluster: "c", PID: fabric.PID(pid), URL: url, Domain: domain, Logger: logger(t, pid),
	})
	if err != nil {
		t.Fatalf("join as %s: %v", pid, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
		defer cancel()
		if err := n.Leave(ctx); err != nil {
			t.Errorf("leave %s: %v", pid, err)
		}
	})
	return n
}

func serve(t *testing.T, o *server.Options) *server.Server {
	t.Helper()
	o.Host, o.Port, o.NoSigs, o.NoLog = "127.0.0.1", server.RANDOM_PORT, true, true
	srv, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("server not ready")
	}
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	return srv
}

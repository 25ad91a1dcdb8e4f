package fabric_test

import (
	"bytes"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A server that falls silent is found after 11/16 of a lease; one that is only quiet is not
// found to be.
func TestSilentServerIsFound(t *testing.T) {
	for _, cut := range []struct {
		name  string
		how   func(*natstest.Link)
		limit time.Duration
	}{
		{"both ways", (*natstest.Link).Cut, 3500 * time.Millisecond},
		{"answers only", (*natstest.Link).CutReplies, 3500 * time.Millisecond},
	} {
		t.Run(cut.name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				// Without FastOptions: with the node's own.
				n, link := joinLink(t, s, "a", func(c *fabric.Config) {
					c.NATS = c.NATS[len(natstest.FastOptions()):]
				})
				events := make(chan fabric.Event, 10)
				go func() {
					defer close(events)
					for e, err := range n.Events(t.Context()) {
						if err != nil {
							return
						}
						events <- e
					}
				}()
				select {
				case e := <-events:
					t.Fatalf("quiet, and %v", e.Kind)
				case <-time.After(time.Minute):
				}
				until := func(kind fabric.EventKind) {
					for e := range events {
						if e.Kind == kind {
							return
						}
					}
				}
				began := time.Now()
				cut.how(link)
				until(fabric.Disconnected) // its lease may be over just before
				if took := time.Since(began); took > cut.limit {
					t.Errorf("%v after %v, want within %v", fabric.Disconnected, took, cut.limit)
				}
				link.Heal()
				until(fabric.Reconnected)
				n.Leave(t.Context())
			})
		})
	}
}

// A process whose renewals are acknowledged hardly pings, though one answer is a fiftieth of a
// lease later than another.
func TestPingsAreFew(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		pings := &pingCounter{link: s.Link()}
		n, _ := joinLink(t, s, "a", func(c *fabric.Config) { c.NATS = []nats.Option{nats.InProcessServer(pings)} })
		began := pings.n.Load()
		for began := time.Now(); time.Since(began) < time.Minute; <-time.After(97 * time.Millisecond) {
			pings.link.CutReplies()
			<-time.After(100 * time.Millisecond)
			pings.link.Heal()
		}
		if n := pings.n.Load() - began; n > 1 {
			t.Errorf("%d pings in a minute, in 12 leases", n)
		}
		n.Leave(t.Context())
	})
}

// A pingCounter counts what its connections ask the server.
type pingCounter struct {
	link *natstest.Link
	n    atomic.Int64
}

func (c *pingCounter) InProcessConn() (net.Conn, error) {
	conn, err := c.link.InProcessConn()
	if err != nil {
		return nil, err
	}
	return &pingCounterConn{conn, c}, nil
}

type pingCounterConn struct {
	net.Conn
	c *pingCounter
}

func (c *pingCounterConn) Write(p []byte) (int, error) {
	c.c.n.Add(int64(bytes.Count(p, []byte("PING\r\n"))))
	return c.Conn.Write(p)
}

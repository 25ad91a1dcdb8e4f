package fabric

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// A gate keeps nats.go from dropping messages on a connection that the node owns:
// while the courier's channel holds more than gateHigh messages, nothing is read
// from the socket. One read brings at most 32 KiB, which is fewer than 1500
// messages, and TLS keeps a few records back; so a channel of gateCap is never
// full. The dispatcher waits for nobody, so a pause is short, and the server's
// queue holds what comes meanwhile.
//
// The zero gate is open, until a courier sets its channel.
//
// It also finds a connection that is dead, by its silence: nats.go would do so by a
// ping whose answer is late, and an answer may be late because it waits in the
// server behind what the node has yet to read, seconds of it on a busy machine. It asks
// for a byte only when there was none for longer than from one renewal to the next, since
// a thousand processes that ping each second cost a server more than their leases.
type gate struct {
	ping   time.Duration // how often a silent connection is asked; 0: never
	nc     atomic.Pointer[nats.Conn]
	ch     atomic.Pointer[chan *nats.Msg]
	mu     sync.Mutex    // guards the field below
	opened chan struct{} // closed when the dispatcher has emptied the channel; nil if nobody waits
	shut   atomic.Bool   // somebody waits
}

const (
	gateCap  = 8192
	gateHigh = 2048
	// pingEvery is after how many times gate.ping nats.go pings by itself, for a server
	// that talks and does not hear.
	pingEvery = 48
)

// full returns what to wait for before more is read; nil if nothing.
func (g *gate) full() <-chan struct{} {
	ch := g.ch.Load()
	if ch == nil || len(*ch) <= gateHigh {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened == nil {
		g.opened = make(chan struct{})
	}
	g.shut.Store(true)
	if len(*ch) <= gateHigh { // emptied since, perhaps before shut could be seen
		g.open()
		return nil
	}
	return g.opened
}

// drained is told by the dispatcher that it has emptied the channel.
func (g *gate) drained() {
	if g.shut.Load() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.open()
	}
}

// open needs g.mu.
func (g *gate) open() {
	g.shut.Store(false)
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

// remove leaves the gate open for good.
func (g *gate) remove() {
	g.ch.Store(nil)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open()
}

// A gatedConn reads only while the gate is open.
type gatedConn struct {
	net.Conn
	gate    *gate
	once    sync.Once
	closed  chan struct{}
	bounded atomic.Bool // a read has a deadline that is not ours
}

func (g *gate) wrap(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return &gatedConn{Conn: conn, gate: g, closed: make(chan struct{})}, nil
}

func (c *gatedConn) Read(p []byte) (int, error) {
	for wait := c.gate.full(); wait != nil; wait = c.gate.full() {
		select {
		case <-wait:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	for limit := c.gate.ping * 7 / 4; ; limit = c.gate.ping {
		if err := c.expect(limit); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		// Once is not enough: nobody may have had to say anything, or this process stood still.
		silent := n == 0 && !c.bounded.Load() && errors.Is(err, os.ErrDeadlineExceeded)
		if silent && limit == c.gate.ping {
			c.giveUp()
		}
		if !silent || limit == c.gate.ping {
			return n, err
		}
		c.gate.ask()
	}
}

// giveUp has what the system could not send yet go with the connection. It would try for
// minutes, and if it succeeded messages would come late, after those of the next connection.
func (c *gatedConn) giveUp() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
}

// expect bounds the next read, unless nats.go or TLS has.
func (c *gatedConn) expect(limit time.Duration) error {
	if c.gate.ping <= 0 || c.bounded.Load() {
		return nil
	}
	return c.Conn.SetReadDeadline(time.Now().Add(limit))
}

// ask has the server say something.
func (g *gate) ask() {
	if nc := g.nc.Load(); nc != nil && nc.IsConnected() {
		go nc.FlushTimeout(g.ping) // whether it answers in time the next read shows
	}
}

func (c *gatedConn) SetDeadline(t time.Time) error {
	c.bounded.Store(!t.IsZero())
	return c.Conn.SetDeadline(t)
}

func (c *gatedConn) SetReadDeadline(t time.Time) error {
	c.bounded.Store(!t.IsZero())
	return c.Conn.SetReadDeadline(t)
}

func (c *gatedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// install has every connection that o leads to pass the gate. A caller who set how often
// to ping has nats.go do so, and a connection that is silent for two and three quarters of
// that given up.
func (g *gate) install(o *nats.Options) {
	if o.PingInterval != pingEvery*g.ping {
		g.ping = o.PingInterval
	}
	if o.InProcessServer != nil {
		o.InProcessServer = gatedServer{o.InProcessServer, g}
	}
	dialer := o.CustomDialer
	if dialer == nil {
		d := net.Dialer{Timeout: o.Timeout}
		if o.Dialer != nil {
			d = *o.Dialer
		}
		dialer = &d
	}
	o.CustomDialer = gatedDialer{dialer, g}
}

type gatedServer struct {
	nats.InProcessConnProvider
	gate *gate
}

func (s gatedServer) InProcessConn() (net.Conn, error) {
	return s.gate.wrap(s.InProcessConnProvider.InProcessConn())
}

type gatedDialer struct {
	nats.CustomDialer
	gate *gate
}

func (d gatedDialer) Dial(network, address string) (net.Conn, error) {
	return d.gate.wrap(d.CustomDialer.Dial(network, address))
}

// SkipTLSHandshake passes on what the caller's dialer says, if it does.
func (d gatedDialer) SkipTLSHandshake() bool {
	s, ok := d.CustomDialer.(interface{ SkipTLSHandshake() bool })
	return ok && s.SkipTLSHandshake()
}

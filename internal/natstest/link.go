package natstest

import (
	"bytes"
	"errors"
	"net"
	"sync"

	"github.com/nats-io/nats.go"
)

var errCut = errors.New("natstest: link is cut")

// Link is a way to a server that can be cut and healed, for [nats.InProcessServer].
// It behaves like a network: it takes all bytes at once, keeps their order, and
// while cut holds them back, in silence.
//
//	               Cut          CutReplies     Kill        Heal
//	to the server  held         flows          discarded   delivered
//	to the client  held         held           discarded   delivered
//	connections    stay open    stay open      closed      -
//	new ones       refused      refused        -           accepted
//
// As with TCP, what a client wrote into a cut link may reach the server after the
// client has given the connection up: Heal delivers it. Kill before Heal loses it.
type Link struct {
	dial func() (net.Conn, error)
	wg   sync.WaitGroup

	mu     sync.Mutex // guards the fields below; never held while blocking
	up     bool       // bytes to the server flow
	down   bool       // bytes to the client flow
	closed bool
	pipes  map[*pipe]struct{}
}

var _ nats.InProcessConnProvider = (*Link)(nil)

func newLink(dial func() (net.Conn, error)) *Link {
	return &Link{dial: dial, up: true, down: true, pipes: make(map[*pipe]struct{})}
}

// InProcessConn returns a connection to the server, or an error while the link is
// cut or the server is down.
func (l *Link) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up || !l.down || l.closed {
		return nil, errCut
	}
	srv, err := l.dial()
	if err != nil {
		return nil, err
	}
	client, end := net.Pipe()
	p := &pipe{client: end, server: srv, up: newQueue(), down: newQueue()}
	l.pipes[p] = struct{}{}
	l.wg.Go(func() {
		p.run()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.pipes, p)
	})
	return client, nil
}

// Cut stops all bytes both ways. Neither side is told: pings find it.
func (l *Link) Cut() { l.set(false, false) }

// CutReplies stops the bytes from the server to the client only: requests are
// served, and their answers do not arrive.
func (l *Link) CutReplies() { l.set(true, false) }

// Heal lets bytes flow again, those held back first, and accepts connections.
func (l *Link) Heal() { l.set(true, true) }

// Kill closes all connections and discards what is on its way. New connections are
// accepted unless the link is cut: Cut and Kill together are a cut that both sides
// notice at once.
func (l *Link) Kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.pipes {
		p.kill()
	}
}

func (l *Link) set(up, down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.down = up, down
	for p := range l.pipes {
		if !p.set(up, down) {
			p.kill()
		}
	}
}

func (l *Link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.Kill()
	l.wg.Wait()
}

// pipe is one connection through a link: two queues, and at the end of each a
// goroutine that fills it and one that drains it.
type pipe struct {
	client, server net.Conn
	up, down       *queue
}

// run moves bytes until both sides are closed.
func (p *pipe) run() {
	var wg sync.WaitGroup
	wg.Go(func() { p.up.fill(p.client) })
	wg.Go(func() { p.up.drain(p.server) })
	wg.Go(func() { p.down.fill(p.server) })
	wg.Go(func() { p.down.drain(p.client) })
	wg.Wait()
}

// set holds or releases the two ways. It reports false if the connection is to be
// held but its handshake is not through: the client would wait for the rest with
// its lock held.
func (p *pipe) set(up, down bool) bool {
	p.up.hold(!up)
	return p.down.hold(!down) || down
}

// kill closes both sides and discards what is under way.
func (p *pipe) kill() {
	p.up.kill()
	p.down.kill()
	p.client.Close()
	p.server.Close()
}

// greeted is the server's word that ends the handshake.
var greeted = []byte("PONG\r\n")

// queue is one direction of a pipe.
type queue struct {
	mu    sync.Mutex // guards the fields below
	cond  *sync.Cond // signalled when any of them changes
	buf   []byte
	held  bool // nothing leaves
	eof   bool // nothing more will come
	dead  bool // nothing leaves ever again
	begun bool // greeted has left
	head  []byte
}

func newQueue() *queue {
	q := &queue{}
	q.cond = sync.NewCond(&q.mu)
	return q
}

// fill takes bytes from a connection until it is closed, and never leaves the
// other side of it waiting.
func (q *queue) fill(from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		q.mu.Lock()
		if !q.dead {
			q.buf = append(q.buf, buf[:n]...)
		}
		q.eof = err != nil
		q.cond.Broadcast()
		q.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// drain hands bytes to a connection, and closes it at the end.
func (q *queue) drain(to net.Conn) {
	defer to.Close()
	for {
		b := q.take()
		if b == nil {
			return
		}
		if _, err := to.Write(b); err != nil {
			q.kill()
			return
		}
	}
}

// take waits for bytes that may leave; nil is the end.
func (q *queue) take() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.dead && (q.held || len(q.buf) == 0 && !q.eof) {
		q.cond.Wait()
	}
	if q.dead || len(q.buf) == 0 {
		return nil
	}
	b := q.buf
	q.buf = nil
	if !q.begun {
		q.head = append(q.head, b...)
		if q.begun = bytes.Contains(q.head, greeted); q.begun {
			q.head = nil
		}
	}
	return b
}

// hold stops or releases the queue. It reports whether greeted has left.
func (q *queue) hold(held bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held = held
	q.cond.Broadcast()
	return q.begun
}

// kill empties the queue for good.
func (q *queue) kill() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dead = true
	q.buf = nil
	q.cond.Broadcast()
}

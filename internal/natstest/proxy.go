package natstest

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// proxyWindow bounds what one direction of a connection holds back, in bytes: as in a
// network, whoever sends more has to wait.
const proxyWindow = 4 << 20

// A lost packet comes again after lossLeast to lossMost, and all behind it wait.
const (
	lossLeast = 200 * time.Millisecond
	lossMost  = time.Second
)

// Proxy is a way to a TCP server that can be spoilt: the counterpart of [Link] for
// processes and real time. Both take all bytes, keep their order, and while cut hold
// them back, in silence; a connection that is made meanwhile gets no answer, and what is held
// back of one that its sender resets is lost. It knows bytes, not packets: loss is the delay
// that it means to TCP.
type Proxy struct {
	target string
	l      net.Listener
	wg     sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	cond  *sync.Cond // signalled when any of them changes
	rng   *rand.Rand
	held  [2]bool
	delay time.Duration
	loss  float64 // probability, of each piece
	conns map[*net.TCPConn]struct{}
	done  bool
}

// The directions of a [Proxy].
const (
	ToServer = iota
	ToClient
)

// NewProxy listens on a free port of loopback and passes connections on to target,
// HOST:PORT, until the test ends. The seed decides what is lost.
func NewProxy(t testing.TB, target string, seed uint64) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("natstest: proxy: %v", err)
	}
	p := &Proxy{target: target, l: l, rng: rand.New(rand.NewPCG(seed, 1)), conns: map[*net.TCPConn]struct{}{}}
	p.cond = sync.NewCond(&p.mu)
	p.wg.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Addr is where the proxy listens, HOST:PORT.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Cut holds back all bytes both ways.
func (p *Proxy) Cut() { p.set(func() { p.held = [2]bool{true, true} }) }

// CutOneWay holds back the bytes of one direction.
func (p *Proxy) CutOneWay(direction int) { p.set(func() { p.held[direction] = true }) }

// Delay has every piece arrive later by d.
func (p *Proxy) Delay(d time.Duration) { p.set(func() { p.delay = d }) }

// Lose has each piece be lost, and come again, with a probability.
func (p *Proxy) Lose(probability float64) { p.set(func() { p.loss = probability }) }

// Heal takes back Cut, CutOneWay, Delay and Lose; what was held back is delivered.
func (p *Proxy) Heal() {
	p.set(func() { p.held, p.delay, p.loss = [2]bool{}, 0, 0 })
}

// Reset breaks all connections with a TCP reset; what was under way is lost.
func (p *Proxy) Reset() {
	p.set(func() {
		for c := range p.conns {
			c.SetLinger(0) // fails on a connection that is gone
			c.Close()
		}
	})
}

func (p *Proxy) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.cond.Broadcast()
}

func (p *Proxy) close() {
	p.l.Close()
	p.set(func() { p.done = true })
	p.Reset()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(c.(*net.TCPConn)) })
	}
}

// serve passes one connection on until either side ends it.
func (p *Proxy) serve(client *net.TCPConn) {
	defer client.Close()
	s, err := net.DialTimeout("tcp", p.target, readyTimeout)
	if err != nil {
		client.SetLinger(0)
		return
	}
	server := s.(*net.TCPConn)
	defer server.Close()
	p.mu.Lock()
	done := p.done
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	if done {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.pump(ToServer, client, server) })
	wg.Go(func() { p.pump(ToClient, server, client) })
	wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
	delete(p.conns, server)
}

// A piece is what one read returned, and when it may leave.
type piece struct {
	b   []byte
	due time.Time
}

// way is the queue of one direction of a connection; the proxy's lock guards it.
type way struct {
	pieces []piece
	size   int
	ended  bool // nothing more will come
	broken bool // nothing more can leave
}

// pump moves the bytes of one direction, and closes both ends at the end: a half of a
// NATS connection is of no use.
func (p *Proxy) pump(direction int, from, to *net.TCPConn) {
	w := &way{}
	var wg sync.WaitGroup
	wg.Go(func() { p.fill(w, direction, from) })
	p.drain(w, direction, to)
	from.Close()
	to.Close()
	wg.Wait()
}

func (p *Proxy) fill(w *way, direction int, from *net.TCPConn) {
	for {
		buf := make([]byte, 32<<10)
		n, err := from.Read(buf)
		p.mu.Lock()
		due := time.Now().Add(p.delay)
		if n > 0 && p.loss > 0 && p.rng.Float64() < p.loss {
			due = due.Add(lossLeast + time.Duration(p.rng.Int64N(int64(lossMost-lossLeast))))
		}
		w.pieces = append(w.pieces, piece{buf[:n], due})
		w.size += n
		if errors.Is(err, syscall.ECONNRESET) && p.held[direction] {
			w.pieces, w.size = nil, 0 // it has not left the sender's system, which forgot it
		}
		w.ended = err != nil
		p.cond.Broadcast()
		for w.size > proxyWindow && !w.broken {
			p.cond.Wait()
		}
		end := w.ended || w.broken
		p.mu.Unlock()
		if end {
			return
		}
	}
}

func (p *Proxy) drain(w *way, direction int, to *net.TCPConn) {
	for {
		p.mu.Lock()
		for !p.done && (p.held[direction] || len(w.pieces) == 0 && !w.ended) {
			p.cond.Wait()
		}
		if p.done || len(w.pieces) == 0 {
			w.broken = true
			p.cond.Broadcast()
			p.mu.Unlock()
			return
		}
		next := w.pieces[0]
		wait := time.Until(next.due)
		if wait <= 0 {
			w.pieces = w.pieces[1:]
			w.size -= len(next.b)
			p.cond.Broadcast()
		}
		p.mu.Unlock()
		if wait > 0 {
			timer := time.NewTimer(min(wait, 20*time.Millisecond)) // a Heal does not wait for it
			<-timer.C
			continue
		}
		if _, err := to.Write(next.b); err != nil {
			p.set(func() { w.broken = true })
			return
		}
	}
}

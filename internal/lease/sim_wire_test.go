package lease_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
)

// The simulated server's side of the client protocol: as much of it as the bucket and
// the sessions need, so that they and nats.go run as they are, and a simulated hour
// costs less than a second.

var errUnreachable = errors.New("simulated server is unreachable")

// A message is one publish of a client.
type message struct {
	w              *wire
	subject, reply string
	header         []byte // as on the wire, or nil
	data           []byte
}

// value returns the value of a header, or "".
func (m message) value(key string) string {
	_, after, ok := bytes.Cut(m.header, []byte("\r\n"+key+": "))
	if !ok {
		return ""
	}
	value, _, _ := bytes.Cut(after, []byte("\r\n"))
	return string(value)
}

// A way is one process's way to the server. It can be cut, in both directions or in
// that of the answers only; what is under way then is held, or lost.
type way struct {
	s *simServer

	// The server's lock guards the fields below.
	up, down bool
	heldUp   []message
	heldDown []func()
	wires    map[*wire]struct{}
}

// InProcessConn is [nats.InProcessConnProvider].
func (y *way) InProcessConn() (net.Conn, error) {
	y.s.mu.Lock()
	defer y.s.mu.Unlock()
	if !y.up || !y.down || y.s.down {
		return nil, errUnreachable
	}
	client, end := net.Pipe()
	w := &wire{y: y, conn: end, subs: map[string]*simSub{}}
	w.cond = sync.NewCond(&w.mu)
	y.wires[w] = struct{}{}
	y.s.wg.Go(w.read)
	y.s.wg.Go(w.drain)
	w.send([]byte(`INFO {"server_id":"SIM","version":"2.15.2","proto":1,"headers":true,"max_payload":1048576}` + "\r\n"))
	return client, nil
}

// set cuts and heals. What was held is delivered, unless it is to be lost.
func (y *way) set(up, down, lose bool) {
	y.s.mu.Lock()
	defer y.s.mu.Unlock()
	y.up, y.down = up, down
	if lose {
		y.heldUp, y.heldDown = nil, nil
	}
	if up {
		held := y.heldUp
		y.heldUp = nil
		for _, m := range held {
			y.s.arrive(m)
		}
	}
	if down {
		held := y.heldDown
		y.heldDown = nil
		for _, deliver := range held {
			deliver()
		}
	}
}

// kill closes the connections.
func (y *way) kill() {
	y.s.mu.Lock()
	defer y.s.mu.Unlock()
	for w := range y.wires {
		w.close()
	}
}

// A simSub is one subscription.
type simSub struct {
	w      *wire
	sid    string
	tokens []string
}

func (b *simSub) matches(tokens []string) bool {
	for i, want := range b.tokens {
		if want == ">" {
			return i < len(tokens)
		}
		if i >= len(tokens) || want != "*" && want != tokens[i] {
			return false
		}
	}
	return len(b.tokens) == len(tokens)
}

// A wire is one connection.
type wire struct {
	y    *way
	conn net.Conn
	subs map[string]*simSub // guarded by the server's lock

	mu     sync.Mutex // guards the fields below
	cond   *sync.Cond
	out    []byte
	closed bool
}

// send queues bytes for the client.
func (w *wire) send(b ...[]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, part := range b {
		w.out = append(w.out, part...)
	}
	w.cond.Signal()
}

func (w *wire) close() {
	w.mu.Lock()
	w.closed = true
	w.cond.Signal()
	w.mu.Unlock()
	w.conn.Close()
}

// drain writes what is queued.
func (w *wire) drain() {
	for {
		w.mu.Lock()
		for len(w.out) == 0 && !w.closed {
			w.cond.Wait()
		}
		out, closed := w.out, w.closed
		w.out = nil
		w.mu.Unlock()
		if closed {
			return
		}
		if _, err := w.conn.Write(out); err != nil {
			return
		}
	}
}

// read serves the client until its connection closes.
func (w *wire) read() {
	defer func() {
		w.close()
		w.y.s.forget(w)
	}()
	r := bufio.NewReader(w.conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		switch f[0] {
		case "PING":
			w.y.s.ping(w)
		case "SUB":
			w.y.s.subscribe(w, f[1], f[len(f)-1])
		case "UNSUB":
			w.y.s.unsubscribe(w, f[1])
		case "PUB", "HPUB":
			m, err := w.publish(r, f)
			if err != nil {
				return
			}
			w.y.s.take(m)
		}
	}
}

// publish reads what follows PUB subject [reply] size, or HPUB subject [reply] header
// size.
func (w *wire) publish(r io.Reader, f []string) (m message, err error) {
	numbers := 1
	if f[0] == "HPUB" {
		numbers = 2
	}
	m = message{w: w, subject: f[1]}
	if len(f) == 3+numbers {
		m.reply = f[2]
	}
	size, err := strconv.Atoi(f[len(f)-1])
	if err != nil {
		return m, err
	}
	body := make([]byte, size+2)
	if _, err := io.ReadFull(r, body); err != nil {
		return m, err
	}
	m.data = body[:size]
	if numbers == 2 {
		n, err := strconv.Atoi(f[len(f)-2])
		if err != nil {
			return m, err
		}
		m.header, m.data = body[:n], body[n:size]
	}
	return m, nil
}

// deliver sends a message to one subscription. The caller holds the server's lock.
func (b *simSub) deliver(subject string, header, data []byte) {
	send := func() {
		if header == nil {
			b.w.send(fmt.Appendf(nil, "MSG %s %s %d\r\n", subject, b.sid, len(data)), data, []byte("\r\n"))
			return
		}
		b.w.send(fmt.Appendf(nil, "HMSG %s %s %d %d\r\n", subject, b.sid, len(header), len(header)+len(data)), header, data, []byte("\r\n"))
	}
	if !b.w.y.down {
		b.w.y.heldDown = append(b.w.y.heldDown, send)
		return
	}
	send()
}

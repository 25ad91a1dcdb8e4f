package embedded

import (
	"bytes"
	"net"
	"sync"
)

// earlyWrites is what nats.go writes before it reads an answer: CONNECT and PING.
const earlyWrites = 2

// conn is a client's end of a connection in the process whose first writes do not
// wait to be read. A pipe has no buffer: a server that refuses the client writes
// why, the client writes on, and neither reads until the server gives up after ten
// seconds, with the reason lost.
type conn struct {
	net.Conn

	mu    sync.Mutex // guards the fields below
	early int        // writes that did not wait
	last  chan error // has the outcome of the last of them; nil once it is known
}

// Write writes b, in the background if the handshake is on. It fails with the error
// of an earlier write if there is one.
func (c *conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.early < earlyWrites {
		c.early++
		before, last := c.last, make(chan error, 1)
		c.last = last
		b := bytes.Clone(b)
		go func() { // ends at the latest when the connection is closed
			last <- c.write(before, b)
		}()
		return len(b), nil
	}
	if c.last != nil {
		err := <-c.last
		c.last = nil
		if err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}

// write writes b when the write before it is through.
func (c *conn) write(before chan error, b []byte) error {
	if before != nil {
		if err := <-before; err != nil {
			return err
		}
	}
	_, err := c.Conn.Write(b)
	return err
}

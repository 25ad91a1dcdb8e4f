package fabric

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/token"
)

// Send hands data to the connection for the process to, which gets it at most
// once, after what this node sent it before in the order of the calls, broadcasts
// included. It does not wait for the receiver: that nobody is there turns out
// later, see [Node.Flush]. That to is not in the view refuses nothing. A send to the
// node itself goes straight to its inbox.
//
// It returns a [NameError] if to is no legal PID, and an error that wraps
// [ErrTooLarge], [ErrDisconnected] or [ErrClosed] if nothing was sent. ctx is only
// looked at before: a send takes microseconds, unless the server does not read
// what the connection sends, when it blocks until it does.
func (n *Node) Send(ctx context.Context, to PID, data []byte) error {
	return n.courier.send(ctx, to, data)
}

// Broadcast hands data to the connection for every member but this one. Each gets
// it at most once, in the order described at [Node.Send], whose errors it returns.
// It is no error if there are no others.
func (n *Node) Broadcast(ctx context.Context, data []byte) error {
	return n.courier.send(ctx, Everyone, data)
}

// SendMsg is [Node.Send] or, if m.To is [Everyone], [Node.Broadcast], with an ID
// and headers of the caller's. It does not change m, and does not look at m.From. A
// key that m.Header may not have is a [NameError]. An ID of the caller's does not
// change what the node chooses next.
func (n *Node) SendMsg(ctx context.Context, m *Message) error { return n.courier.sendMsg(ctx, m) }

// A dest is what all messages to one process have in common.
type dest struct {
	pid     PID
	subject string
	reply   string // all but the id, of a message that is not a request
	request string // all but the id, of a request
}

func (c *courier) newDest(to PID) *dest {
	if to == Everyone {
		reply := c.subj.reply(c.cfg.pid, nobody)
		return &dest{pid: to, subject: c.subj.everyone(), reply: c.tagged(reply, kindBroadcast)}
	}
	reply := c.subj.reply(c.cfg.pid, to)
	return &dest{
		pid:     to,
		subject: c.subj.peer(to),
		reply:   c.tagged(reply, kindSend),
		request: c.tagged(reply, kindRequest),
	}
}

func (c *courier) tagged(reply string, k kind) string {
	return reply + string(wireVersion) + string(rune(k)) + c.nonce + "."
}

// dests caches the destinations in use. It is emptied when it has maxDests.
type dests struct {
	last atomic.Pointer[dest]
	mu   sync.RWMutex // guards m
	m    map[PID]*dest
}

const maxDests = 16_384

// dest returns the destination for a PID that a caller handed over.
func (c *courier) dest(to PID) (*dest, error) {
	if d := c.dests.last.Load(); d != nil && d.pid == to {
		return d, nil
	}
	if to == Everyone {
		return c.everyone, nil
	}
	c.dests.mu.RLock()
	d := c.dests.m[to]
	c.dests.mu.RUnlock()
	if d == nil {
		if err := token.CheckPID(string(to)); err != nil {
			return nil, err
		}
		d = c.newDest(to)
		c.dests.mu.Lock()
		if c.dests.m == nil || len(c.dests.m) >= maxDests {
			c.dests.m = make(map[PID]*dest)
		}
		c.dests.m[to] = d
		c.dests.mu.Unlock()
	}
	c.dests.last.Store(d)
	return d, nil
}

// ready returns the destination to if messages may be sent at all.
func (c *courier) ready(ctx context.Context, to PID) (*dest, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if c.closed.Load() {
		return nil, ErrClosed
	}
	return c.dest(to)
}

func (c *courier) send(ctx context.Context, to PID, data []byte) error {
	d, err := c.ready(ctx, to)
	if err == nil {
		err = c.post(d, c.ids.Add(1), nil, data)
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	return nil
}

func (c *courier) sendMsg(ctx context.Context, m *Message) error {
	d, err := c.ready(ctx, m.To)
	if err == nil {
		err = checkHeader(m.Header)
	}
	if err == nil {
		id := m.ID
		if id == 0 {
			id = c.ids.Add(1)
		}
		err = c.post(d, id, m.Header, m.Data)
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", m.To, err)
	}
	return nil
}

// post sends a message that is not a request.
func (c *courier) post(d *dest, id uint64, h nats.Header, data []byte) error {
	if d.pid == c.cfg.pid {
		return c.postSelf(id, h, data)
	}
	var buf [128]byte // on the stack; longer names make append allocate
	reply := string(strconv.AppendUint(append(buf[:0], d.reply...), id, 10))
	var err error
	if len(h) == 0 {
		err = c.nc.PublishRequest(d.subject, reply, data)
	} else {
		err = c.nc.PublishMsg(&nats.Msg{Subject: d.subject, Reply: reply, Header: h, Data: data})
	}
	if err != nil {
		return c.publishError(err, len(data))
	}
	c.sent.Add(1)
	return nil
}

// postSelf puts a message to the node itself into its inbox.
func (c *courier) postSelf(id uint64, h nats.Header, data []byte) error {
	m := &Message{From: c.cfg.pid, To: c.cfg.pid, ID: id, Data: bytes.Clone(data)}
	if len(h) > 0 {
		m.Header = maps.Clone(h)
		for key, values := range m.Header {
			m.Header[key] = append([]string(nil), values...)
		}
	}
	if size := m.size(); size > c.nc.MaxPayload() {
		return fmt.Errorf("%w: %d bytes, the server takes %d", ErrTooLarge, size, c.nc.MaxPayload())
	}
	c.sent.Add(1)
	if c.off {
		c.clerk.add(entry{to: c.cfg.pid, id: id, err: ErrUnreachable})
		return nil
	}
	c.inbox.put([]*Message{m})
	return nil
}

func (c *courier) publishError(err error, size int) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return fmt.Errorf("%w: %d bytes and the header, the server takes %d", ErrTooLarge, size, c.nc.MaxPayload())
	}
	return natsError(err)
}

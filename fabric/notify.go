package fabric

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
)

// arrived has the senders of refused messages told, and those of messages that were
// accepted and await that to be known. batch holds all of them.
func (c *courier) arrived(batch, refused []*Message) {
	for _, m := range refused {
		m.taken()
		if c.inbox.onFull > Reject && m.asked() == nil {
			continue
		}
		c.notices.add(notice{m: m, refused: true})
	}
	for _, m := range batch {
		if a := m.asked(); a != nil && a.kind == kindAccept {
			c.notices.add(notice{m: m}) // after a refusal it is the second reply: it goes nowhere
		}
	}
}

// A notice is something that the sender of a message is to be told.
type notice struct {
	m       *Message
	refused bool // accepted otherwise
	// tooLarge is why it was refused; otherwise the inbox was full.
	tooLarge bool
}

// notices is the queue of a goroutine of its own, because publishing waits when the
// server does not read, and the dispatcher must wait for nobody.
type notices struct {
	wake  chan struct{} // capacity 1: a token means that the queue is not empty
	mu    sync.Mutex    // guards the fields below
	queue []notice
	busy  bool // some were taken from queue, and their senders are not told yet
}

// maxNotices bounds the queue. When it is full a sender is not told: one that awaits
// something finds the outcome unknown.
const maxNotices = 65_536

func (q *notices) add(n notice) {
	q.mu.Lock()
	if len(q.queue) < maxNotices {
		q.queue = append(q.queue, n)
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// idle reports whether everybody was told.
func (q *notices) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.queue) == 0 && !q.busy
}

func (c *courier) notify() {
	q := &c.notices
	for {
		select {
		case <-q.wake:
		case <-c.done:
			return
		}
		q.mu.Lock()
		batch := q.queue
		q.queue, q.busy = nil, true
		q.mu.Unlock()
		c.tell(batch)
		q.mu.Lock()
		q.busy = false
		q.mu.Unlock()
	}
}

// tell tells the senders, those of messages that await nothing many at a time.
func (c *courier) tell(batch []notice) {
	type peer struct {
		pid      PID
		nonce    string
		tooLarge bool
	}
	nacks := make(map[peer][]uint64)
	for _, n := range batch {
		var err error
		switch m := n.m; {
		case m.asked() != nil && n.tooLarge:
			err = m.reply(life{c}, kindError, codeTooLarge, []byte(ErrTooLarge.Error()))
		case m.asked() != nil && n.refused:
			err = m.reply(life{c}, kindFull, "", nil)
		case m.asked() != nil:
			err = m.reply(life{c}, kindAck, "", nil)
		case m.To == Everyone || m.source == nil || m.source == &c.own:
			// One of many, or one who cannot be told.
		default:
			p := peer{m.From, m.source.nonce, n.tooLarge}
			nacks[p] = append(nacks[p], m.ID)
		}
		if err != nil && !errors.Is(err, ErrReplied) {
			c.log.Debug("sender not told", "pid", c.cfg.pid, "to", n.m.From, "err", err)
		}
	}
	for p, ids := range nacks {
		for ids := range slices.Chunk(ids, maxNackIDs) {
			if err := c.nack(p.pid, p.nonce, p.tooLarge, ids); err != nil {
				c.log.Debug("sender not told", "pid", c.cfg.pid, "to", p.pid, "err", err)
			}
		}
	}
}

// maxNackIDs bounds the messages that one publish says were refused.
const maxNackIDs = 1024

// codeTooLarge is the type of a nack, or error, that the receiver will never have
// memory for the message.
const codeTooLarge = "TooLarge"

// nack tells a sender that messages that await nothing were refused.
func (c *courier) nack(to PID, nonce string, tooLarge bool, ids []uint64) error {
	t := tag{kind: kindNack, nonce: nonce, id: ids[0]}
	if tooLarge {
		t.typ = codeTooLarge
	}
	var data []byte
	for _, id := range ids[1:] {
		data = binary.AppendUvarint(data, id)
	}
	return c.nc.Publish(string(t.append([]byte(c.subj.reply(to, c.cfg.pid)))), data)
}

// nacked notes what a receiver's nack says. It reports whether that is well formed.
func (c *courier) nacked(from PID, t tag, data []byte) bool {
	err := ErrInboxFull
	if t.typ == codeTooLarge {
		err = ErrTooLarge
	}
	c.clerk.add(entry{to: from, id: t.id, err: err})
	for n := 1; len(data) > 0; n++ {
		id, size := binary.Uvarint(data)
		if size <= 0 || n >= maxNackIDs {
			return false
		}
		data = data[size:]
		c.clerk.add(entry{to: from, id: id, err: err})
	}
	return true
}

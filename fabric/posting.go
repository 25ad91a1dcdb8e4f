package fabric

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/mail"
)

// A posting is a message on its way into a stream.
//
// One that was stored at the first attempt is used again when the outbox is done with it,
// with the address at which it was acknowledged: to route to an address that it has not
// seen before costs the server as much as all else about an acknowledgement. So to such an
// address one attempt of each message before was published, and was answered; should it be
// answered once more, verdict does not take that for an answer to the message now.
type posting struct {
	to      PID // who speaks in the address of the acknowledgement
	subject string
	timer   *time.Timer

	id     uint64
	mailID string      // for the server; empty: none
	header nats.Header // beside that
	data   []byte
	dead   bool // it goes to the dead letters, and does not count in Stats.Sent

	gone   bool        // nobody waits for it; outbox.publishing guards it
	begun  atomic.Bool // the outbox publishes it: it may be answered
	handed atomic.Bool // the outbox is done with it
	call   *call       // of the newest attempt; nil if that was answered and s is not stored
	reply  string      // where call is answered
	before mail.Place  // of the newest message that was acknowledged there, if any was
	began  time.Time
	tries  int
	open   int   // attempts that were not answered: they may have been stored
	lost   int   // attempts whose answers may not be theirs
	err    error // of the last attempt
}

// address makes a durable message of o.
func (p *mailer) address(to PID, chosen bool, o *outgoing) *posting {
	id := tag{kind: kindMail, nonce: p.c.nonce, typ: o.typ, id: o.id}
	var s *posting
	if chosen { // it may have its place in the stream already
		id.secret, s = p.mac(to, o.id), newPosting()
	} else {
		id.secret, s = random(secretLen), p.idle.take()
	}
	if s.to != to {
		s.to, s.subject, s.call = to, p.c.subj.mail(to), nil
	}
	var buf [128]byte
	s.mailID = string(id.append(append(append(buf[:0], p.c.cfg.pid...), '.')))
	s.id, s.header, s.data = o.id, o.header, o.data
	return s
}

// mac is the part of an id that nobody can foresee but this courier, and that is the same
// for the same receiver and number: of a number that the caller chose. Those of others are
// random.
func (p *mailer) mac(to PID, id uint64) string {
	var buf [len(p.key) + 8 + 64]byte // on the stack: a name has at most 64 bytes
	b := binary.BigEndian.AppendUint64(append(buf[:0], p.key[:]...), id)
	sum := sha256.Sum256(append(b, to...))
	n := binary.BigEndian.Uint64(sum[:]) // too little of it to compute the sum of a longer input
	var out [secretLen]byte
	for i := range out {
		out[i] = base62[n%62]
		n /= 62
	}
	return string(out[:])
}

// fullHeader is what s has to have on the wire.
func (s *posting) fullHeader() nats.Header {
	if s.mailID == "" {
		return s.header
	}
	header := make(nats.Header, len(s.header)+1)
	maps.Copy(header, s.header)
	header[headerID] = []string{s.mailID}
	return header
}

// await awaits an answer to s: to call, or, if that is nil, at an address of its own.
func (p *mailer) await(s *posting) {
	if s.call == nil {
		s.call, s.before = newCall(s.id, s.to), mail.Place{}
		t := tag{kind: kindMail, nonce: p.c.nonce, id: s.id, secret: s.call.secret}
		var buf [160]byte
		s.reply = string(t.append(append(buf[:0], p.awaitedAt(s.to)...)))
	}
	p.calls.add(s.call)
	if p.c.closed.Load() { // close may not have seen it
		p.close()
	}
}

// awaitedAt begins the addresses at which the storing of messages to a process is
// acknowledged.
func (p *mailer) awaitedAt(to PID) string {
	if p.at == "" {
		return p.c.subj.reply(p.c.cfg.pid, to)
	}
	return p.at + string(to) + "."
}

// maxIdle bounds the postings that are kept to be used again.
const maxIdle = 256

// postings are those to be used again.
type postings struct {
	mu  sync.Mutex // guards all
	all []*posting
}

// take returns the one that was used last, or a new one.
func (i *postings) take() *posting {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := len(i.all)
	if n == 0 {
		return newPosting()
	}
	s := i.all[n-1]
	i.all = i.all[:n-1]
	return s
}

func newPosting() *posting { return &posting{timer: time.NewTimer(repeatAfter)} }

// reuse keeps s, which is stored, for another message, unless the outbox has it or more may
// come of it than the answer it had.
func (p *mailer) reuse(s *posting) {
	if s.dead || s.tries > 1 || !s.handed.Load() {
		return
	}
	s.header, s.data = nil, nil
	p.idle.mu.Lock()
	defer p.idle.mu.Unlock()
	if len(p.idle.all) < maxIdle {
		p.idle.all = append(p.idle.all, s)
	}
}

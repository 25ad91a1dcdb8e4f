package fabric

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/internal/token"
)

// Headers of a dead letter, beside its sender's.
const (
	headerReason   = "Fab-Reason"
	headerAttempts = "Fab-Attempts"
	headerDeadID   = "Fab-Id"      // the message's own id
	headerSubject0 = "Fab-Subject" // where it was published
	headerCut      = "Fab-Cut"     // its size, if it had to be cut
)

// maxReason bounds what is kept of why a letter is dead, in bytes.
const maxReason = 1 << 10

// A DeadLetter is a message of Mode [Durable] that its receiver could not handle. It is
// kept for 30 days in the stream fab_<cluster>_<env>_dead.
type DeadLetter struct {
	// Message is what was sent, From [PID] "_" if its sender is not known: what is not
	// a fabric's message may have any subject, Subject.
	Message *Message
	Subject string
	// Reason is the last error of the receiver's handler, or what is wrong with it.
	Reason   string
	Attempts int
	// Parked is when it became one, by the server's clock, and Seq its number.
	Parked time.Time
	Seq    uint64
	// Cut is the size that Data had if there was no room for all of it, otherwise 0: a
	// message of no fabric's process that filled the server's max_payload.
	Cut int
}

// DeadLetters iterates over the dead letters of the whole fabric, the oldest first, and
// ends after the last there is, or with an error. It needs a round trip for each. If
// nobody has ever used Mode [Durable] there are none.
func (n *Node) DeadLetters(ctx context.Context) iter.Seq2[*DeadLetter, error] {
	return func(yield func(*DeadLetter, error) bool) {
		p := n.courier.mail
		if err := p.look(ctx); err != nil {
			if !errors.Is(err, ErrNoMail) {
				yield(nil, err)
			}
			return
		}
		for seq := uint64(0); ; {
			m, err := p.office.Dead(ctx, seq)
			if err != nil {
				yield(nil, explain(err))
				return
			}
			if m == nil || !yield(n.courier.deadLetter(m), nil) {
				return
			}
			seq = m.Sequence + 1
		}
	}
}

// look makes sure that the streams are there, and makes none.
func (p *mailer) look(ctx context.Context) error {
	if p.opened.Load() {
		return nil
	}
	if p.office == nil {
		return ErrNoMail
	}
	return explain(p.office.Open(ctx, false))
}

func (c *courier) deadLetter(m *jetstream.RawStreamMsg) *DeadLetter {
	d := &DeadLetter{
		Message: &Message{Mode: Durable, Header: userHeader(m.Header), Data: m.Data},
		Subject: m.Header.Get(headerSubject0), Reason: m.Header.Get(headerReason), Parked: m.Time, Seq: m.Sequence,
	}
	d.Attempts, _ = strconv.Atoi(m.Header.Get(headerAttempts))
	d.Cut, _ = strconv.Atoi(m.Header.Get(headerCut))
	d.Message.From, d.Message.To, _ = c.subj.parseDead(m.Subject)
	if _, end, ok := strings.Cut(m.Header.Get(headerDeadID), "."); ok {
		t, _ := parseTag(end)
		d.Message.ID, d.Message.Type = t.id, t.typ
	}
	return d
}

// MailCount says how much mail waits for a PID.
type MailCount struct {
	PID     PID
	Mailbox bool // it has a mailbox, its process being up or not
	Waiting int  // messages that are stored and not done
}

// Mail counts the messages of Mode [Durable] of the whole fabric, by receiver, in the
// order of the PIDs. It is empty if nobody has ever used that.
func (n *Node) Mail(ctx context.Context) ([]MailCount, error) {
	p := n.courier.mail
	if err := p.look(ctx); err != nil {
		if errors.Is(err, ErrNoMail) {
			return nil, nil
		}
		return nil, err
	}
	owners, err := p.office.Owners(ctx)
	if err != nil {
		return nil, explain(err)
	}
	bySubject, err := p.office.Waiting(ctx)
	if err != nil {
		return nil, explain(err)
	}
	all := make(map[PID]*MailCount)
	of := func(pid PID) *MailCount {
		if all[pid] == nil {
			all[pid] = &MailCount{PID: pid}
		}
		return all[pid]
	}
	for _, name := range owners {
		of(PID(name)).Mailbox = true
	}
	for subject, count := range bySubject {
		rest := strings.TrimPrefix(subject, p.c.subj.prefix+classMail)
		to, _, _ := strings.Cut(rest, ".")
		of(PID(to)).Waiting += int(count)
	}
	counts := make([]MailCount, 0, len(all))
	for _, m := range all {
		counts = append(counts, *m)
	}
	order := token.Order(func(yield func(string) bool) {
		for pid := range all {
			if !yield(string(pid)) {
				return
			}
		}
	})
	slices.SortFunc(counts, func(a, b MailCount) int { return order(string(a.PID), string(b.PID)) })
	return counts, nil
}

// A deadParcel is what becomes of a message that is given up: a dead letter.
type deadParcel struct {
	letter   *letter
	subject  string // where it was published
	from     PID
	header   nats.Header
	data     []byte
	reason   string
	attempts int
}

// newDeadParcel keeps what m is now: once it is handed out, its receiver may change it.
func newDeadParcel(c *courier, m jetstream.Msg, attempts int, reason string) *deadParcel {
	_, from, ok := c.subj.parseMail(m.Subject())
	if !ok {
		from = nobody
	}
	header := nats.Header{}
	for key, values := range userHeader(m.Headers()) {
		header[key] = slices.Clone(values)
	}
	if ids := m.Headers()[headerID]; len(ids) > 0 {
		header[headerDeadID] = ids[:1]
	}
	header[headerSubject0] = []string{m.Subject()}
	return &deadParcel{subject: m.Subject(), from: from, header: header, data: bytes.Clone(m.Data()), reason: reason, attempts: attempts}
}

// parkLocked has l, which is held, parked. It needs b.mu.
func (b *mailbox) parkLocked(l *letter, reason string) {
	b.release(l, parked)
	l.parcel.letter, l.parcel.reason = l, reason
	b.parcels = append(b.parcels, l.parcel) // at most InFlight: the server waits for them
	select {
	case b.parking <- struct{}{}:
	default:
	}
}

// park stores the dead letters, one after the other, and only then lets the mail stream
// forget them.
func (b *mailbox) park() {
	ctx := life{b.c}
	for try := 0; ; {
		b.mu.Lock()
		var next *deadParcel
		if len(b.parcels) > 0 {
			next = b.parcels[0]
		}
		b.mu.Unlock()
		if next == nil {
			select {
			case <-b.parking:
				continue
			case <-b.c.done:
				return
			}
		}
		err := b.p.bury(ctx, next)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			b.c.log.Warn("dead letter not stored yet", "pid", b.c.cfg.pid, "from", next.from, "reason", next.reason, "err", err)
			if pauseFor(ctx, min(time.Second<<min(try, 6), time.Minute)) != nil {
				return
			}
			try++
			continue
		}
		try = 0
		b.p.parked.Add(1)
		b.c.log.Warn("message became a dead letter", "pid", b.c.cfg.pid, "from", next.from, "attempts", next.attempts, "reason", next.reason)
		b.mu.Lock()
		b.parcels = b.parcels[1:]
		b.settleLocked(next.letter)
		b.mu.Unlock()
	}
}

// bury returns nil when the stream of dead letters has stored the parcel. It has no id
// that the server would look at: one that was stolen would make it vanish. So it may be
// there twice, if an answer was lost.
func (p *mailer) bury(ctx context.Context, d *deadParcel) error {
	ctx, cancel := context.WithTimeout(ctx, DefaultRequestTimeout)
	defer cancel()
	d.header[headerReason] = []string{d.reason[:min(len(d.reason), maxReason)]}
	d.header[headerAttempts] = []string{strconv.Itoa(d.attempts)}
	if headerSize(d.header) > p.nc.MaxPayload()/2 { // a stranger's
		maps.DeleteFunc(d.header, func(key string, _ []string) bool { return !strings.HasPrefix(key, "Fab-") })
	}
	data := d.data
	if room := p.nc.MaxPayload() - headerSize(d.header) - 64; int64(len(data)) > room {
		d.header[headerCut] = []string{strconv.Itoa(len(data))}
		data = data[:max(room-64, 0)]
	}
	s := newPosting()
	s.to, s.subject, s.dead = p.c.cfg.pid, p.c.subj.dead(d.from), true
	s.id, s.header, s.data = p.c.ownIDs.Add(1), d.header, data
	p.enqueue(s)
	return p.finish(ctx, s)
}

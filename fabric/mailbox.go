package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/internal/mail"
)

// A mailbox fetches the node's durable messages into its inbox and has them
// acknowledged when they are done.
//
//	            +--------- delivered again ----------+
//	            v                                    |
//	deliver -> held --Done(nil)--> settled           |
//	            |                                    |
//	            +-----Done(err), not the last--> failed
//	            |
//	            +-----Done(err), the last------> parking --stored--> settled
//	deliver, invalid or failed too often ------> parking
//
// While a message is held or parked, the server is told so each third of its patience,
// so that it delivers nothing again as long as this process lives. The server counts
// the deliveries; as it cannot tell those that waited in an inbox from those that were
// tried, a new process fetches one at a time until all that its predecessor had are
// settled, parked or have failed: if one of them ends processes, the others are not
// counted down with it.
type mailbox struct {
	p    *mailer
	c    *courier
	cfg  Mailbox
	desc mail.Box
	cons jetstream.Consumer // of the next serve; run's alone
	tick *time.Ticker       // each third of the server's patience

	stop    context.CancelFunc     // ends the fetching; nil before it begins
	stopped chan struct{}          // closed when nothing is fetched any more
	idle    chan struct{}          // capacity 1: a token means that a message was settled
	parking chan struct{}          // capacity 1: a token means that there is something to park
	last    atomic.Pointer[writer] // of the last message

	mu       sync.Mutex         // guards the fields below
	patience time.Duration      // of the server: whoever made the mailbox chose it
	letters  map[uint64]*letter // delivered and not settled, by their place in the stream
	held     int
	parcels  []*deadParcel
	seen     seen
	closed   bool
}

func newMailbox(p *mailer) *mailbox {
	cfg := p.c.cfg.mailbox.withDefaults()
	return &mailbox{
		p: p, c: p.c, cfg: cfg, desc: boxOf(p.c.subj, cfg, p.c.cfg.ackWait),
		stopped: make(chan struct{}), idle: make(chan struct{}, 1), parking: make(chan struct{}, 1), letters: make(map[uint64]*letter),
	}
}

// boxOf describes the mailbox of the process whose subjects s are.
func boxOf(s subjects, cfg Mailbox, ackWait time.Duration) mail.Box {
	cfg = cfg.withDefaults()
	return mail.Box{
		PID: string(s.me), Subjects: s.mailTo(s.me), AckWait: ackWait,
		InFlight: cfg.InFlight, Idle: cmp.Or(cfg.Age, DefaultMailAge),
	}
}

// begin opens the mailbox, if there is one to be, and starts to receive. The node must
// hold its PID.
func (p *mailer) begin(ctx context.Context) error {
	if p.box == nil {
		return nil
	}
	if err := p.open(ctx); err != nil {
		return err
	}
	if err := p.box.open(ctx); err != nil {
		return explain(err)
	}
	p.c.subsMu.Lock()
	defer p.c.subsMu.Unlock()
	if p.c.closed.Load() {
		return ErrClosed
	}
	fetching, stop := context.WithCancel(life{p.c})
	p.box.stop = stop
	p.c.wg.Go(func() { p.box.run(fetching) })
	p.c.wg.Go(p.box.keep)
	p.c.wg.Go(p.box.park)
	return nil
}

// open makes the mailbox, or finds it, and learns how patient the server is.
func (b *mailbox) open(ctx context.Context) error {
	cons, err := b.p.office.Mailbox(ctx, b.desc, !b.c.cfg.fixedMail)
	if err != nil {
		return err
	}
	b.cons = cons
	b.mu.Lock()
	defer b.mu.Unlock()
	b.patience = max(cons.CachedInfo().Config.AckWait, minPatience)
	if b.tick == nil {
		b.tick = time.NewTicker(b.patience / 3)
	}
	b.tick.Reset(b.patience / 3)
	return nil
}

// stopIntake has the mailbox fetch nothing more, and waits until what was fetched is in
// the inbox, or waits for room there.
func (p *mailer) stopIntake(ctx context.Context) error {
	if p.box == nil || p.box.stop == nil {
		return nil
	}
	p.box.stop()
	select {
	case <-p.box.stopped:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// inHand returns how many messages were fetched and are not settled, nor to come again.
func (p *mailer) inHand() (n int) {
	if p.box == nil {
		return 0
	}
	p.box.mu.Lock()
	defer p.box.mu.Unlock()
	for _, l := range p.box.letters {
		if l.state != failed {
			n++
		}
	}
	return n
}

// run receives until ctx ends, and gives back what is held when the courier closes.
func (b *mailbox) run(ctx context.Context) {
	defer b.stop()
	b.fetch(ctx)
	close(b.stopped)
	<-b.c.done
	b.close()
}

// fetch receives until ctx ends, and opens the mailbox again when it was lost.
func (b *mailbox) fetch(ctx context.Context) {
	e := estate{b: b, last: b.cons.CachedInfo().Delivered.Stream}
	defer e.hand()
	var err error
	for try := 0; ctx.Err() == nil; {
		if err == nil && !e.settled {
			err = e.inherit(ctx)
		}
		if err == nil {
			try = 0
			err = b.serve(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			b.c.log.Warn("mailbox not reached", "pid", b.c.cfg.pid, "err", err)
		}
		if pauseFor(ctx, min(100*time.Millisecond<<min(try, 6), 5*time.Second)) != nil {
			return
		}
		try++
		b.p.opened.Store(false)
		if err = b.p.open(ctx); err == nil {
			err = b.open(ctx)
		}
	}
}

// fetchBytes bounds the bytes that are fetched and not yet in the inbox, so that
// nats.go has room for them; a message must fit.
const fetchBytes = 16 << 20

// serve receives until ctx ends or the mailbox is lost.
func (b *mailbox) serve(ctx context.Context) error {
	lost := make(chan error, 1)
	cc, err := b.cons.Consume(b.deliver,
		jetstream.PullMaxMessagesWithBytesLimit(b.cfg.InFlight, fetchBytes+int(b.p.nc.MaxPayload())),
		jetstream.PullExpiry(30*time.Second), jetstream.PullHeartbeat(5*time.Second),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			// What else comes here is got over by nats.go.
			if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrConsumerDeleted) ||
				errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrBadRequest) {
				select {
				case lost <- err:
				default:
				}
			}
		}))
	if err != nil {
		return err
	}
	select {
	case err = <-lost:
	case <-cc.Closed():
	case <-ctx.Done():
	}
	cc.Drain() // what was fetched still comes to deliver
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-cc.Closed():
	case <-timer.C: // the connection is away
	}
	return err
}

// deliver takes a message from the stream. It waits while the inbox is full.
func (b *mailbox) deliver(m jetstream.Msg) {
	if msg := b.admit(m); msg != nil {
		b.hand(msg)
	}
}

// admit makes a letter of a message from the stream, and returns what is to be handed
// out, if anything is.
func (b *mailbox) admit(m jetstream.Msg) *Message {
	meta, err := m.Metadata()
	if err != nil || !b.p.office.Delivered(meta, b.desc) {
		b.c.drop(&nats.Msg{Subject: m.Subject(), Reply: m.Reply()}) // it is not from the stream
		return nil
	}
	msg, id, reason := b.decode(m)
	b.mu.Lock()
	if b.closed || b.c.closed.Load() {
		b.mu.Unlock()
		b.ack(m.Reply(), ackAgain(handOver))
		return nil
	}
	key := id
	if key == "" {
		key = "#" + strconv.FormatUint(meta.Sequence.Stream, 10)
	}
	l := b.letters[meta.Sequence.Stream]
	switch {
	case l == nil && !b.seen.add(key):
		b.mu.Unlock()
		b.p.repeated.Add(1)
		b.ack(m.Reply(), ackDone)
		return nil
	case l == nil:
		l = &letter{box: b, seq: meta.Sequence.Stream, key: key, attempt: int(meta.NumDelivered), stored: meta.Timestamp}
		b.letters[l.seq] = l
	case l.state != failed: // the server was impatient
		l.ack = m.Reply()
		b.mu.Unlock()
		return nil
	default:
		b.seen.add(key)
		l.attempt++
	}
	l.ack, l.state = m.Reply(), held
	b.held++
	last := l.attempt >= b.cfg.Attempts
	if reason != "" || last {
		l.parcel = newDeadParcel(b.c, m, l.attempt, reason)
	}
	if reason == "" && l.attempt > b.cfg.Attempts {
		reason = fmt.Sprintf("the process ended during attempt %d", l.attempt-1)
		l.parcel.attempts--
	}
	if reason != "" {
		b.parkLocked(l, reason)
		b.mu.Unlock()
		return nil
	}
	b.mu.Unlock()
	a := msg.asked()
	a.letter, a.attempt = l, l.attempt
	return msg
}

// hand puts m into the inbox when there is room.
func (b *mailbox) hand(m *Message) {
	for {
		room := b.c.inbox.offer(m)
		if room == nil {
			return
		}
		select {
		case <-room:
		case <-b.c.done:
			return
		}
	}
}

// decode makes a message of what the stream stored. If it is not what a fabric's
// process sends, reason says why.
func (b *mailbox) decode(m jetstream.Msg) (msg *Message, id, reason string) {
	defer func() {
		if reason != "" {
			b.c.invalid.Add(1)
		}
	}()
	w := b.last.Load()
	if w == nil || w.subject != m.Subject() {
		_, from, ok := b.c.subj.parseMail(m.Subject())
		if !ok {
			return nil, "", "the sender in the subject is no PID"
		}
		w = &writer{subject: m.Subject(), from: from}
		b.last.Store(w)
	}
	h := m.Headers()
	if isForeign(h) {
		return nil, "", "it was made by the server"
	}
	both := &struct {
		Message
		asked
	}{
		Message{From: w.from, To: b.c.cfg.pid, Header: userHeader(h), Mode: Durable, Data: m.Data()},
		asked{courier: b.c, kind: kindMail},
	}
	msg = &both.Message
	msg.ask("", &both.asked)
	if w.from == External {
		return msg, "", ""
	}
	ids := h[headerID]
	if len(ids) != 1 {
		return nil, "", "it has no id"
	}
	rest, ok := strings.CutPrefix(ids[0], string(w.from)+".")
	t, tagged := parseTag(rest)
	if !ok || !tagged || t.kind != kindMail {
		return nil, "", "its id is not of its sender"
	}
	msg.ID, msg.Type, msg.source.nonce = t.id, t.typ, t.nonce
	return msg, ids[0], ""
}

// A writer is whom a subject names.
type writer struct {
	subject string
	from    PID
}

// userHeader is what the sender's caller gave of a stored header, nil if nothing.
func userHeader(h nats.Header) nats.Header {
	if _, ok := h[headerID]; ok && len(h) == 1 {
		return nil
	}
	var out nats.Header
	for key, values := range h {
		if badKey(key) != "" {
			continue
		}
		if out == nil {
			out = make(nats.Header, len(h))
		}
		out[key] = values
	}
	return out
}

// handOver is when the server delivers again what a process gives back as it ends: all
// of it together, in the order of the stream, but that a server which still has an old
// request to fetch puts the first one last.
const handOver = 50 * time.Millisecond

// close gives back what is held: the next process need not wait for it.
func (b *mailbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for _, l := range b.letters {
		if l.state != failed {
			b.ack(l.ack, ackAgain(handOver))
		}
	}
}

// pauseFor waits for d, or until ctx ends, whose cause it returns.
func pauseFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

package fabric

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/mail"
	"github.com/natsfabric/natsfabric/internal/token"
)

// headerID is where the server looks for a message's id, and where a durable message
// says what others say in their reply subject: see wire.go.
const headerID = "Nats-Msg-Id"

// mailOverhead is what a durable message must leave free of the server's max_payload:
// for its id, and for the reason why it became a dead letter.
const mailOverhead = 4 << 10

// newOffice returns the fabric's mail as a node with cfg would have it.
func newOffice(cfg Config, l *link, s subjects) *mail.Office {
	return mail.New(l.nc, mail.Config{
		Name: kv.Name(cfg.Cluster, cfg.Env), Mail: s.mailAll(), Dead: s.deadAll(),
		Domain: cfg.Domain, Replicas: cfg.Replicas,
		Quota: cmp.Or(cfg.Mailbox.Quota, DefaultMailQuota), Bytes: cmp.Or(cfg.Mailbox.Bytes, DefaultMailBytes),
		Age: cmp.Or(cfg.Mailbox.Age, DefaultMailAge), Denied: l.refused, Logger: cfg.Logger,
	})
}

// A mailer hands the courier's durable messages to the mail stream, and has the
// mailbox if the node has one.
type mailer struct {
	c      *courier
	nc     *nats.Conn // the one that carries the bucket
	office *mail.Office
	key    [sha256.Size]byte // of the macs in ids
	calls  calls             // messages whose storing is to be acknowledged
	idle   postings          // to be used again
	turn   chan struct{}     // capacity 1: who holds its token looks after the streams
	opened atomic.Bool       // the streams were there
	outbox outbox
	box    *mailbox // nil if it has none
	at     string   // begins where answers are awaited; empty: in class r

	parked, repeated atomic.Uint64
}

func newMailer(c *courier) *mailer {
	p := &mailer{c: c, nc: c.nc, office: c.cfg.mail, turn: make(chan struct{}, 1)}
	if p.office != nil {
		p.nc = p.office.Conn()
	}
	_, _ = rand.Read(p.key[:]) // never fails (crypto/rand)
	p.calls.init()
	p.outbox.wake = make(chan struct{}, 1)
	if c.cfg.mailbox.On && !c.cfg.passive && p.office != nil {
		p.box = newMailbox(p)
	}
	return p
}

// open makes sure that the streams are there. A passive node makes none.
func (p *mailer) open(ctx context.Context) error {
	if p.opened.Load() {
		return nil
	}
	if p.office == nil {
		return ErrNoMail
	}
	ctx, cancel := p.limit(ctx)
	defer cancel()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if p.opened.Load() {
		return nil
	}
	if err := p.office.Open(ctx, !p.c.cfg.passive && !p.c.cfg.fixedMail); err != nil {
		return explain(err)
	}
	p.opened.Store(true)
	return nil
}

// limit bounds a ctx without a deadline, but for the courier's own.
func (p *mailer) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok || ctx == (life{p.c}) {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, DefaultRequestTimeout)
}

// post returns when the mail stream has stored o; if d is everyone, a message for each
// of the others who are members or have a mailbox. The id is chosen if the caller named
// it: then it stands for the same message again.
func (p *mailer) post(ctx context.Context, d *dest, chosen bool, o *outgoing) error {
	if size := int64(len(o.data)) + headerSize(o.header) + mailOverhead; size > p.nc.MaxPayload() {
		return fmt.Errorf("%w: %d bytes with %d for the mail stream, the server takes %d", ErrTooLarge, size, mailOverhead, p.nc.MaxPayload())
	}
	if err := p.open(ctx); err != nil {
		return err
	}
	if d.pid != Everyone {
		s := p.address(d.pid, chosen, o)
		p.enqueue(s)
		return p.finish(ctx, s)
	}
	pids, err := p.everyone(ctx)
	if err != nil {
		return err
	}
	var all []*posting
	for _, pid := range pids {
		s := p.address(pid, chosen, o)
		p.enqueue(s)
		all = append(all, s)
	}
	var errs []error
	for _, s := range all {
		if err := p.finish(ctx, s); err != nil {
			errs = append(errs, Undeliverable{To: s.to, ID: o.id, Err: err})
		}
	}
	return errors.Join(errs...)
}

// everyone returns the members of the view and the owners of mailboxes, without this
// node.
func (p *mailer) everyone(ctx context.Context) ([]PID, error) {
	ctx, cancel := p.limit(ctx)
	defer cancel()
	owners, err := p.office.Owners(ctx)
	if err != nil {
		return nil, explain(err)
	}
	pids := p.c.cfg.others()
	known := make(map[PID]bool, len(pids)+1)
	known[p.c.cfg.pid] = true
	for _, pid := range pids {
		known[pid] = true
	}
	for _, name := range owners {
		if pid := PID(name); !known[pid] && token.CheckPID(name) == nil {
			pids = append(pids, pid)
			known[pid] = true
		}
	}
	return pids, nil
}

// again hands s to the connection once more. What becomes of it, finish finds out.
func (p *mailer) again(s *posting) {
	if s.call == nil {
		p.await(s)
	}
	s.tries++
	if s.err = p.publish(s, s.fullHeader(), s.reply); s.err == nil {
		s.open++
	}
}

// publish hands s to the connection, with a header, to be answered at reply.
func (p *mailer) publish(s *posting, header nats.Header, reply string) error {
	if !p.nc.IsConnected() { // a borrowed connection's buffer would take it
		if p.nc.IsClosed() {
			return natsError(nats.ErrConnectionClosed)
		}
		return ErrDisconnected
	}
	err := p.nc.PublishMsg(&nats.Msg{Subject: s.subject, Reply: reply, Header: header, Data: s.data})
	if err != nil {
		return p.c.publishError(err, len(s.data))
	}
	return nil
}

// close ends everything that waits, with [ErrClosed]. It is not one more channel to wait
// for, as hundreds of callers would contend for it.
func (p *mailer) close() {
	p.calls.mu.Lock()
	defer p.calls.mu.Unlock()
	for secret, w := range p.calls.m {
		delete(p.calls.m, secret)
		w.answer <- answer{err: ErrClosed}
	}
}

// listen awaits what the mail stream answers, on the bucket's connection if that is one
// of its own: in the account of messages there is no JetStream. It does so at an address
// that nobody can guess, as nats.go does: JetStream can be had to answer anywhere else.
func (p *mailer) listen() error {
	if p.nc == p.c.nc {
		return nil // onReply takes it
	}
	p.at = p.c.subj.inbox() + "." + random(secretLen) + random(secretLen) + "."
	_, err := p.c.subscribeOn(p.nc, p.at+">", "", func(m *nats.Msg) {
		to, rest, _ := strings.Cut(strings.TrimPrefix(m.Subject, p.at), ".")
		t, ok := parseTag(rest)
		switch {
		case !ok || t.nonce != p.c.nonce || t.kind != kindMail:
			p.c.drop(m)
		case isNoResponders(m):
			p.answered(PID(to), t, answer{err: errBounced})
		case isForeign(m.Header):
			p.c.drop(m)
		default:
			p.answered(PID(to), t, answer{kind: t.kind, data: m.Data})
		}
	}, func() {})
	return err
}

// answered gives what came back to who waits for it.
func (p *mailer) answered(from PID, t tag, a answer) {
	if w := p.calls.match(t, from); w != nil {
		w.answer <- a
	}
}

// An attempt is repeated when repeatAfter has passed, then twice as long each time,
// as long as the server still knows the id if one of them was stored.
const (
	repeatAfter = time.Second
	repeatUntil = mail.MinWindow * 3 / 4
)

// finish returns nil when s is stored, and repeats it until then, until ctx ends or, if
// that has no deadline, until DefaultRequestTimeout has passed. An error wraps
// [ErrUnknownOutcome] or says that it was not stored. The caller uses s no more.
func (p *mailer) finish(ctx context.Context, s *posting) error {
	err := p.attend(ctx, s)
	s.timer.Stop()
	if s.call != nil && err != nil {
		p.calls.take(s.call)
	}
	p.abandon(s)
	if err == nil {
		p.reuse(s)
	}
	return err
}

func (p *mailer) attend(ctx context.Context, s *posting) error {
	_, bounded := ctx.Deadline()
	s.timer.Reset(max(repeatAfter-time.Since(s.began), 0)) // others of a broadcast were waited for
	for {
		var end error
		select {
		case a := <-s.call.answer:
			s.open--
			if a.err == ErrClosed {
				s.open++
				end = a.err
				break
			}
			v, err := p.verdict(s, a)
			if v == settled {
				return doubted(s, err)
			}
			s.call, s.err = nil, err
			if v == tryLater {
				if end = p.prepare(ctx, s); end != nil {
					break
				}
			}
			if s.open+s.lost > 0 && time.Since(s.began) >= repeatUntil { // it would be stored twice
				end = fmt.Errorf("too late to repeat it: %v", err)
				break
			}
			p.again(s)
			continue
		case <-s.timer.C:
			if waited := time.Since(s.began); len(s.call.answer) > 0 { // it came first
				s.timer.Reset(repeatAfter)
			} else if !bounded && waited >= DefaultRequestTimeout {
				end = context.DeadlineExceeded
				break
			} else if waited < repeatUntil {
				p.again(s)
				s.timer.Reset(min(repeatAfter<<min(s.tries, 4), max(DefaultRequestTimeout-waited, repeatAfter)))
			}
			continue
		case <-ctx.Done():
			if len(s.call.answer) > 0 {
				continue
			}
			end = context.Cause(ctx)
		}
		return p.given(s, end)
	}
}

// A verdict says what to do after an answer.
type verdict uint8

const (
	settled  verdict = iota // stored, or refused for good
	tryLater                // after a pause
	tryNow                  // elsewhere
)

// errEarlier is what an acknowledgement means that may be of the message before.
var errEarlier = errors.New("acknowledged at the place of an earlier message")

// verdict says what an answer to s means. At an address that was used before only a later
// place in the same stream is trusted, once s was published: anything else may be about the
// message before, or the stream was made anew, and s is to be repeated at an address of its
// own.
func (p *mailer) verdict(s *posting, a answer) (verdict, error) {
	if a.err == errBounced { // nobody writes to the stream
		return tryLater, ErrNoMail
	}
	if a.err != nil {
		return settled, a.err // a permission is missing
	}
	read := p.office.Stored
	if s.dead {
		read = p.office.Parked
	}
	place, err := read(a.data)
	if s.before.Seq > 0 && (!place.After(s.before) || !s.begun.Load() && s.tries == 1) {
		if s.handed.Load() {
			s.lost++
		} else { // the outbox may publish it after the repetition
			s.open++
		}
		return tryNow, cmp.Or(err, errEarlier)
	}
	switch {
	case err == nil:
		s.before = place
		return settled, nil
	case errors.Is(err, mail.ErrBusy):
		return tryLater, err
	case errors.Is(err, mail.ErrForeign): // what our stream says is still to come
		s.open++
		return tryLater, err
	case errors.Is(err, mail.ErrFull):
		return settled, fmt.Errorf("%w: %w", ErrMailboxFull, err)
	case errors.Is(err, mail.ErrTooLarge):
		return settled, fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return settled, err
}

// prepare waits before the next attempt, and looks after the stream if it was not
// there.
func (p *mailer) prepare(ctx context.Context, s *posting) error {
	if err := kv.Pause(ctx, s.tries); err != nil {
		return err
	}
	if !errors.Is(s.err, ErrNoMail) {
		return nil
	}
	p.opened.Store(false)
	return p.open(ctx)
}

// doubted is err, the answer to one attempt, unless another may have stored s. A refusal
// that says that nothing was stored does not match then.
func doubted(s *posting, err error) error {
	switch _, denied := errors.AsType[*PermissionError](err); {
	case err == nil, s.open == 0 && (s.lost == 0 || mail.Definite(err)):
		return err
	case denied:
		return fmt.Errorf("%w: message %d: an attempt was not answered, another: %w", ErrUnknownOutcome, s.id, err)
	}
	return fmt.Errorf("%w: message %d: an attempt was not answered, another: %v", ErrUnknownOutcome, s.id, err)
}

// given is the error of a message that was given up because of end.
func (p *mailer) given(s *posting, end error) error {
	waited := time.Since(s.began).Round(time.Millisecond)
	if s.open+s.lost > 0 {
		return fmt.Errorf("%w: message %d was not acknowledged as stored within %v: %w", ErrUnknownOutcome, s.id, waited, end)
	}
	if s.err != nil && !errors.Is(end, ErrNoMail) {
		return fmt.Errorf("message %d was not stored within %v: %w: %w", s.id, waited, s.err, end)
	}
	return end
}

// headerSize is what a header takes on the wire, or a little more.
func headerSize(h nats.Header) int64 {
	n := 0
	for key, values := range h {
		for _, v := range values {
			n += len(key) + len(v) + 4
		}
	}
	return int64(n)
}

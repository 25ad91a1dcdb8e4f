package fabric

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/mail"
)

// A courierConfig says whose messages a courier carries, and who knows about the
// other processes. Every field is required but passive and onUndeliverable.
type courierConfig struct {
	nc       *nats.Conn // not closed by the courier
	gate     *gate      // of nc; nil if nc is borrowed
	subjects subjects
	pid      PID
	passive  bool // send and request only: nothing but answers is received
	inbox    Inbox
	mode     Mode // of messages that have none
	noBatch  bool
	offline  Offline
	logger   *slog.Logger

	onUndeliverable func(Undeliverable)
	// mail is the fabric's; nil if it has none.
	mail    *mail.Office
	mailbox Mailbox
	// fixedMail: the streams and the mailbox were made by somebody else.
	fixedMail bool
	ackWait   time.Duration // of the mailbox
	// known reports whether a PID is in the view. It does no I/O and may be called
	// from any goroutine.
	known func(PID) bool
	// unheard is told of a PID in the view for which the server knows no receiver. It
	// waits for nobody. Optional.
	unheard func(PID)
	// lifeOf returns a PID's incarnation in the view, 0 if it has none. As known.
	lifeOf func(PID) uint64
	// others returns the PIDs in the view but this node's. As known.
	others func() []PID
	// members returns the view as the PIDs and their incarnations, and what is closed
	// when there is another. As known.
	members func() (map[PID]uint64, <-chan struct{})
	// refused returns the error of a subscription that the server's permissions
	// refused, once the server has answered a flush after it. As known.
	refused func(subject string) error
	// gone reports whether a PID's claim was read as absent, left or dead; it is
	// called for PIDs that are not known, with a deadline. If it cannot tell, it says
	// false.
	gone func(ctx context.Context, pid PID) bool
}

// A courier carries the messages of one node over one connection: it knows the
// subjects, the wire and the inbox, and nothing of leases and views.
//
//	reader (nats.go) --ch--> dispatch --> inbox --> Receive, Messages, Handle
//	                            `--------> notify (tells senders)
//	reader (nats.go) --r---> onReply ---> outstanding requests and queries
//	                            `--503, flush markers--> clerk --> Flush, OnUndeliverable
//
// Each of the four stages is one goroutine; each service that is served adds one
// (anycast.go). None waits for a user but the clerk,
// in OnUndeliverable; its queue is bounded.
type courier struct {
	cfg   courierConfig
	nc    *nats.Conn
	subj  subjects
	nonce string
	own   source // of messages to the node itself
	log   *slog.Logger

	ids      atomic.Uint64 // of messages
	ownIDs   atomic.Uint64 // of markers and signals, so that messages are numbered 1, 2, 3
	sent     atomic.Uint64
	invalid  atomic.Uint64
	stray    atomic.Uint64 // of links that this courier does not know
	repeated atomic.Uint64 // on links, and dropped
	dropped  atomic.Uint64 // by nats.go, once close has read it

	dests    dests
	answers  dests // by who awaits them
	everyone *dest
	marks    *dest // this node, in class r
	batcher  batcher
	links    links
	memory   memory // of messages in parts
	inbox    *inbox
	off      bool           // no messages are received
	ch       chan *nats.Msg // what is to be dispatched; nil if off
	topics   topics
	services services
	notices  notices
	calls    calls // requests and messages to be acknowledged
	queries  queries
	flushes  calls
	clerk    clerk
	mail     *mailer

	subsMu sync.Mutex           // guards subs and lost
	subs   []*nats.Subscription // all, for close
	lost   uint64               // dropped by nats.go, of subscriptions that have ended

	draining   atomic.Bool // nothing new is sent
	intakeEnds atomic.Bool // the inbox gets nothing new
	end        *nats.Msg   // put into intake, it closes through
	through    chan struct{}

	done   chan struct{} // closed by close
	closed atomic.Bool
	wg     sync.WaitGroup
}

// channelCap is the capacity of the channel that u, b and g share, the only kind of
// subscription that keeps their common order, on a borrowed connection. nats.go
// drops what finds it full, so it must outlast the time in which the reader runs
// and dispatch does not. Go lets a goroutine run for 10 ms before another must be
// let in, and the reader parses up to 5 million messages of a few bytes a second:
// 50 000. A drop would still be counted, in Stats.Rejected. On a connection of the
// node's own the reader is held back instead: see gate.
const channelCap = 65_536

// newCourier subscribes and starts to take messages in. The caller flushes the
// connection before it relies on being reached, and calls close when done.
func newCourier(cfg courierConfig) (*courier, error) {
	c := &courier{
		cfg:     cfg,
		nc:      cfg.nc,
		subj:    cfg.subjects,
		nonce:   random(nonceLen),
		log:     cfg.logger,
		off:     cfg.passive || cfg.inbox.Off,
		notices: notices{wake: make(chan struct{}, 1)},
		done:    make(chan struct{}),
		end:     new(nats.Msg), through: make(chan struct{}),
		inbox: newInbox(cfg.inbox),
	}
	c.own = source{nonce: c.nonce}
	c.calls.init()
	c.flushes.init()
	c.queries.init(c)
	c.clerk.init(c)
	c.mail = newMailer(c)
	c.everyone = c.newDest(Everyone)
	c.marks = &dest{pid: cfg.pid, reply: c.subj.reply(cfg.pid, cfg.pid), plain: kindFlush}
	c.memory.limit = c.inbox.maxBytes
	c.batcher.init(c)
	c.links.init(c)
	if err := c.start(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *courier) start() error {
	if !c.off {
		size := channelCap
		if c.cfg.gate != nil {
			size = gateCap
		}
		c.ch = make(chan *nats.Msg, size)
		if c.cfg.gate != nil {
			c.cfg.gate.ch.Store(&c.ch)
		}
		for _, subject := range []string{c.subj.peerAll(), c.subj.castAll()} {
			if _, err := c.subscribeChan(subject); err != nil {
				return err
			}
		}
		c.wg.Go(func() { c.dispatch(c.ch) })
		c.wg.Go(c.notify)
		if _, err := c.subscribe(c.subj.chunkAll(), c.onStream); err != nil {
			return err
		}
	}
	c.wg.Go(c.clerk.run)
	c.wg.Go(c.batcher.run)
	c.wg.Go(c.links.keep)
	c.wg.Go(c.links.speak)
	if _, err := c.subscribe(c.subj.replyAll(), c.onReply); err != nil {
		return err
	}
	return c.mail.listen()
}

// subscribeChan has every message to subject go to the dispatcher.
func (c *courier) subscribeChan(subject string) (*nats.Subscription, error) {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()
	if c.closed.Load() {
		return nil, ErrClosed
	}
	sub, err := c.nc.ChanSubscribe(subject, c.ch)
	if err != nil {
		return nil, fmt.Errorf("subscribe %q: %w", subject, natsError(err))
	}
	c.subs = append(c.subs, sub)
	return sub, nil
}

// unsubscribe ends a subscription before the courier closes.
func (c *courier) unsubscribe(sub *nats.Subscription) {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()
	if c.closed.Load() {
		return
	}
	c.lost += drops(sub)
	// It fails if the connection is closed, which ended the subscription.
	_ = sub.Unsubscribe()
	c.subs = slices.DeleteFunc(c.subs, func(s *nats.Subscription) bool { return s == sub })
}

// subscribe has f called with every message to subject, one at a time. nats.go
// drops nothing of it: f must not wait for anybody.
func (c *courier) subscribe(subject string, f nats.MsgHandler) (*nats.Subscription, error) {
	return c.subscribeGroup(subject, "", f, func() {})
}

// subscribeGroup is subscribe as one of a queue group, if that is not empty; ended
// is called after f was for the last time.
func (c *courier) subscribeGroup(subject, group string, f nats.MsgHandler, ended func()) (*nats.Subscription, error) {
	return c.subscribeOn(c.nc, subject, group, f, ended)
}

// subscribeOn is subscribeGroup on a connection that may be the bucket's.
func (c *courier) subscribeOn(nc *nats.Conn, subject, group string, f nats.MsgHandler, ended func()) (*nats.Subscription, error) {
	c.subsMu.Lock()
	defer c.subsMu.Unlock()
	if c.closed.Load() {
		return nil, ErrClosed
	}
	sub, err := nc.QueueSubscribe(subject, group, f)
	if err != nil {
		return nil, fmt.Errorf("subscribe %q: %w", subject, natsError(err))
	}
	c.wg.Add(1)
	done := sync.OnceFunc(func() {
		ended()
		c.wg.Done()
	})
	sub.SetClosedHandler(func(string) { done() })
	// It is closed already if the connection is, and may not have seen the handler.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		done()
		return nil, fmt.Errorf("subscribe %q: %w", subject, natsError(err))
	}
	c.subs = append(c.subs, sub)
	return sub, nil
}

// close ends everything that waits, with [ErrClosed], takes in what nats.go has
// handed over, and returns when the courier's goroutines have ended. It must not
// be called from onUndeliverable or a handler of signals. Calling it again waits as
// well.
func (c *courier) close() {
	c.subsMu.Lock()
	if !c.closed.Swap(true) {
		c.dropped.Store(c.channelDrops())
		for _, sub := range c.subs {
			// It fails if the connection is closed, which ended the subscription.
			_ = sub.Unsubscribe()
		}
		close(c.done)
		c.batcher.close()
		c.mail.close()
	}
	c.subsMu.Unlock()
	c.wg.Wait()
}

// channelDrops is how many messages nats.go dropped because dispatch was late. It
// needs c.subsMu.
func (c *courier) channelDrops() uint64 {
	sum := c.lost
	for _, sub := range c.subs {
		sum += drops(sub)
	}
	return sum
}

// drops is how many messages to the dispatcher nats.go dropped.
func drops(sub *nats.Subscription) uint64 {
	if sub.Type() != nats.ChanSubscription {
		return 0
	}
	n, err := sub.Dropped()
	if err != nil {
		return 0 // it has ended
	}
	return uint64(n)
}

// signal publishes data as the fabric's own signal of a kind, a legal name, to
// every process but this one.
func (c *courier) signal(kind string, data []byte) error {
	if c.closed.Load() {
		return ErrClosed
	}
	subject := c.subj.signal(kind)
	reply := tag{kind: kindSignal, nonce: c.nonce, id: c.ownIDs.Add(1)}.append([]byte(c.subj.reply(c.cfg.pid, nobody)))
	if err := c.nc.PublishRequest(subject, string(reply), data); err != nil {
		return fmt.Errorf("signal %s: %w", kind, natsError(err))
	}
	return nil
}

// onSignal has f called with the other processes' signals of a kind, one at a
// time, in each sender's order, until stop is called or the courier closes. f may keep
// data; it may be running when stop returns, but not when close does.
func (c *courier) onSignal(kind string, f func(from PID, data []byte)) (stop func(), err error) {
	sub, err := c.subscribe(c.subj.signalAll(kind), func(m *nats.Msg) {
		from, ok := c.subj.parseSignal(kind, m.Subject)
		if t, tagged := c.tagOf(m, from, nobody); !ok || from == External || !tagged || t.kind != kindSignal {
			c.drop(m)
			return
		}
		if from != c.cfg.pid {
			f(from, m.Data)
		}
	})
	if err != nil {
		return nil, err
	}
	return func() { c.unsubscribe(sub) }, nil
}

// tagOf returns the tag of a message from one process to another, or to nobody in
// particular. It is not ok if the message does not name both, or is JetStream's.
func (c *courier) tagOf(m *nats.Msg, from, to PID) (tag, bool) {
	rest, ok := c.subj.cutReply(m.Reply, from, to)
	if !ok || isForeign(m.Header) {
		return tag{}, false
	}
	return parseTag(rest)
}

// drop counts a message that is not as the wire wants it.
func (c *courier) drop(m *nats.Msg) {
	c.invalid.Add(1)
	c.log.Debug("invalid message dropped", "pid", c.cfg.pid, "subject", clip(m.Subject), "reply", clip(m.Reply))
}

// permission is told of a subject that the server's permissions refuse to op,
// "publish" or "subscribe". Who awaits an answer to what was published there fails
// with a [PermissionError]; if there is nobody, a send must have been meant.
func (c *courier) permission(op, subject string) {
	if op != "publish" {
		return
	}
	if to, from, ok := c.subj.parseMail(subject); ok && from == c.cfg.pid {
		c.mail.calls.fail(to, "", &PermissionError{Op: op, Subject: subject})
		return
	}
	err := &PermissionError{Op: op, Subject: subject}
	to, service, ok := c.subj.target(subject)
	if ok && !c.calls.fail(to, service, err) && !c.queries.fail(subject, err) && service == "" {
		c.clerk.add(entry{to: to, err: err})
	}
}

// A life is the courier's own as a context: what its reads of the bucket and the
// handlers' contexts end with.
type life struct{ c *courier }

func (l life) Deadline() (time.Time, bool) { return time.Time{}, false }
func (l life) Done() <-chan struct{}       { return l.c.done }
func (l life) Value(any) any               { return nil }
func (l life) Err() error {
	select {
	case <-l.c.done:
		return context.Canceled
	default:
		return nil
	}
}

// clip shortens what a stranger sent, for the log.
func clip(s string) string { return s[:min(len(s), 256)] }

package fabric

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// A Query says whom [Node.Gather] asks, how, and when it has heard enough.
type Query struct {
	// Topic asks the nodes that have joined it. Default: all members but this node.
	Topic string
	// Count ends it after so many answers; failures are not counted. Default: no
	// bound.
	Count int
	// Silence ends it when nobody was heard for so long. Default: no bound.
	Silence time.Duration
	// Type and Header are the message's, as in [Message].
	Type   string
	Header nats.Header
}

// Gather asks many nodes at once and iterates over their answers, as they come:
// each a message From who answered. It publishes one message, in the order described
// at [Node.Send]; for its receivers it is a request. Every range over the iterator
// asks anew, and none before.
//
// It ends, without an error, when q.Count answers have come; when there was silence
// for q.Silence; and, without q.Topic, when everyone in the view has answered or
// failed, as the view was when it began. Who has joined a topic is not known, so with
// a Topic either Count or Silence is required.
//
// A node that failed is one error, an [Undeliverable] with its PID in To, and the
// iteration goes on. Err wraps
//
//   - [ErrNoPeer]: it left, or its lease ran out, before it answered;
//   - [ErrInboxFull]: its inbox was full, or its answer found no room here, where the
//     answers that wait to be read are bounded as by Config.Inbox;
//   - [*RemoteError]: its handler returned an error;
//   - [ErrUnreachable]: the server knows nobody who takes broadcasts;
//   - [ErrUnknownOutcome]: it had not answered when ctx ended.
//
// Any other error is the last: of those of [Node.Send], [ErrNoReceiver] if the server
// knows nobody who has joined the topic, a [PermissionError], or one that wraps the
// cause of ctx's end or, when a ctx without a deadline has waited
// [DefaultRequestTimeout], [context.DeadlineExceeded].
//
// A node answers once: what it says after that, or after it was found to have failed,
// or after the end, is ignored. Members that take no messages ([Inbox].Off) never
// answer. A node that joined after the query began may have got it, and its answer is
// one more.
func (n *Node) Gather(ctx context.Context, q Query, data []byte) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		if err := n.courier.inquire(ctx, q, data, yield); err != nil {
			yield(nil, fmt.Errorf("gather: %w", err))
		}
	}
}

// A query is one that awaits answers. What is heard of a node, an answer or why there
// is none, is queued once.
type query struct {
	id              uint64
	secret, subject string
	wake            chan struct{} // capacity 1: a token means that there is something new

	mu      sync.Mutex // guards the fields below
	known   map[PID]bool
	queue   []answer
	waiting int   // of queue, answers from the network
	bytes   int64 // of those
	err     error // what ends it, other than ctx
}

// queries are the outstanding ones by their secret.
type queries struct {
	c        *courier
	maxMsgs  int // of each: answers that wait, and strangers that are heard
	maxBytes int64
	refused  atomic.Uint64

	mu sync.Mutex // guards m
	m  map[string]*query
}

func (s *queries) init(c *courier) {
	s.c, s.m = c, make(map[string]*query)
	s.maxMsgs, s.maxBytes = c.inbox.maxMsgs, c.inbox.maxBytes
}

func (s *queries) open(id uint64, subject string) *query {
	w := &query{id: id, secret: random(secretLen), subject: subject, wake: make(chan struct{}, 1), known: make(map[PID]bool)}
	s.mu.Lock()
	s.m[w.secret] = w
	s.mu.Unlock()
	return w
}

func (s *queries) close(w *query) {
	s.mu.Lock()
	delete(s.m, w.secret)
	s.mu.Unlock()
}

// match returns the query that a tag is for, or nil.
func (s *queries) match(t tag) *query {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.m[t.secret]; w != nil && w.id == t.id {
		return w
	}
	return nil
}

// heard takes an answer from the network. It waits for nobody.
func (s *queries) heard(t tag, a answer) {
	if w := s.match(t); w != nil && a.from != External {
		s.add(w, a)
	}
}

// end ends the query that a tag is for, which was not published, or, with
// errBounced, reached nobody.
func (s *queries) end(t tag, err error) {
	if w := s.match(t); w != nil {
		w.end(err)
	}
}

// fail ends the queries published to subject and reports whether there were any.
func (s *queries) fail(subject string, err error) (any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.m {
		if w.subject == subject {
			w.end(err)
			any = true
		}
	}
	return any
}

// add queues what was heard of a node, if that is the first. An answer for which there is
// no room is a failure.
func (s *queries) add(w *query, a answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.known[a.from] {
		return
	}
	if a.err == nil {
		if len(w.known) >= s.maxMsgs && !s.c.cfg.known(a.from) { // as many others as come would be known
			s.refused.Add(1)
			return
		}
		if size := int64(len(a.data)); w.waiting >= s.maxMsgs || w.bytes+size > s.maxBytes {
			s.refused.Add(1)
			a = answer{from: a.from, err: fmt.Errorf("%w: too many answers wait to be read", ErrInboxFull)}
		} else {
			w.waiting++
			w.bytes += size
		}
	}
	w.known[a.from] = true
	w.queue = append(w.queue, a)
	w.signal()
}

func (w *query) end(err error) {
	w.mu.Lock()
	w.err = cmp.Or(w.err, err)
	w.mu.Unlock()
	w.signal()
}

func (w *query) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// next removes and returns what was heard first; without anything, what ends w.
func (w *query) next() (a answer, ok bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return answer{}, false, w.err
	}
	a = w.queue[0]
	w.queue[0] = answer{}
	w.queue = w.queue[1:]
	if a.err == nil {
		w.waiting--
		w.bytes -= int64(len(a.data))
	}
	return a, true, nil
}

// An inquiry is one range over what Gather returns.
type inquiry struct {
	c     *courier
	q     Query
	w     *query
	yield func(*Message, error) bool

	answers int
	waiting map[PID]uint64 // the incarnations that have not answered; nil of a topic
	watched map[PID]uint64 // those of them that the view had last
}

// inquire returns the last error, unless the caller has left the loop.
func (c *courier) inquire(ctx context.Context, q Query, data []byte, yield func(*Message, error) bool) error {
	if q.Count < 0 || q.Silence < 0 || q.Topic != "" && q.Count == 0 && q.Silence == 0 {
		return &ConfigError{"Query", "it needs a Count or a Silence, neither negative, to ask a topic"}
	}
	d, err := c.readyFor(ctx, &Message{To: Everyone, Topic: q.Topic})
	if err == nil {
		err = cmp.Or(checkHeader(q.Header), checkType(q.Type))
	}
	if err != nil {
		return err
	}
	g := &inquiry{c: c, q: q, yield: yield}
	var changed <-chan struct{}
	if q.Topic == "" {
		if g.waiting, changed = c.cfg.members(); g.waiting == nil {
			g.waiting = map[PID]uint64{}
		}
		delete(g.waiting, c.cfg.pid)
		g.watched = maps.Clone(g.waiting)
		if len(g.waiting) == 0 {
			return nil
		}
	}
	g.w = c.queries.open(c.ids.Add(1), d.subject)
	defer c.queries.close(g.w)
	o := outgoing{kind: kindRequest, id: g.w.id, secret: g.w.secret, typ: q.Type, header: q.Header, data: data}
	if err := c.ask(ctx, d, &o); err != nil {
		return err
	}
	return g.run(ctx, changed)
}

func (g *inquiry) run(ctx context.Context, changed <-chan struct{}) error {
	timeout := make(<-chan time.Time)
	if _, ok := ctx.Deadline(); !ok {
		t := time.NewTimer(DefaultRequestTimeout)
		defer t.Stop()
		timeout = t.C
	}
	var quiet *time.Timer
	var silence <-chan time.Time
	if g.q.Silence > 0 {
		quiet = time.NewTimer(g.q.Silence)
		defer quiet.Stop()
		silence = quiet.C
	}
	for {
		if done, err := g.read(ctx); done || err != nil {
			return err
		}
		var end error
		select {
		case <-g.w.wake:
			if quiet != nil {
				quiet.Reset(g.q.Silence)
			}
		case <-changed:
			changed = g.look()
		case <-silence:
			_, err := g.read(ctx) // what came at the same moment
			return err
		case <-ctx.Done():
			end = context.Cause(ctx)
		case <-timeout:
			end = context.DeadlineExceeded
		case <-g.c.done:
			end = ErrClosed
		}
		if end != nil {
			return g.giveUp(ctx, end)
		}
	}
}

// read passes on what was heard. It is done when that is enough, or when the caller
// has left the loop.
func (g *inquiry) read(ctx context.Context) (done bool, err error) {
	for {
		a, ok, err := g.w.next()
		switch {
		case ok:
		case err == errBounced && g.q.Topic == "":
			g.unreachable()
			continue
		case err == errBounced:
			return true, ErrNoReceiver
		default:
			return false, err
		}
		delete(g.waiting, a.from)
		if a.kind == kindAnswer {
			g.answers++
			m := &Message{From: a.from, To: g.c.cfg.pid, Topic: g.q.Topic, ID: g.w.id, Type: a.typ, Data: a.data}
			ok = g.yield(m, nil)
		} else {
			ok = g.failed(a.from, g.c.refusal(ctx, a.from, a))
		}
		if !ok || g.answers == g.q.Count && g.answers > 0 || g.waiting != nil && len(g.waiting) == 0 {
			return true, nil
		}
	}
}

func (g *inquiry) failed(pid PID, err error) bool {
	return g.yield(nil, Undeliverable{To: pid, ID: g.w.id, Err: err})
}

// unreachable is for when nobody takes broadcasts.
func (g *inquiry) unreachable() {
	g.w.mu.Lock()
	g.w.err = nil
	g.w.mu.Unlock()
	for _, pid := range slices.Sorted(maps.Keys(g.waiting)) {
		g.c.queries.add(g.w, answer{from: pid, err: ErrUnreachable})
	}
}

var errGone = fmt.Errorf("%w: it left, or its lease ran out, before it answered", ErrNoPeer)

// look finds who is gone. An answer that reached the connection before that news has
// its turn first.
func (g *inquiry) look() (changed <-chan struct{}) {
	view, changed := g.c.cfg.members()
	var gone []PID
	for pid, inc := range g.watched {
		if now, ok := view[pid]; !ok || now != inc {
			gone = append(gone, pid)
			delete(g.watched, pid)
		}
	}
	if len(gone) == 0 {
		return changed
	}
	slices.Sort(gone)
	tell := func() {
		for _, pid := range gone {
			g.c.queries.add(g.w, answer{from: pid, err: errGone})
		}
	}
	if err := g.c.nc.Barrier(tell); err != nil { // the connection is closed
		tell()
	}
	return changed
}

// giveUp passes on what was heard, who was not, and why that is the end.
func (g *inquiry) giveUp(ctx context.Context, cause error) error {
	if done, err := g.read(ctx); done || err != nil {
		return err
	}
	asked := len(g.waiting)
	for _, pid := range slices.Sorted(maps.Keys(g.waiting)) {
		if !g.failed(pid, fmt.Errorf("%w: no answer: %w", ErrUnknownOutcome, cause)) {
			return nil
		}
	}
	if asked == 0 {
		return fmt.Errorf("%d have answered: %w", g.answers, cause)
	}
	return fmt.Errorf("%d have answered, %d have not: %w", g.answers, asked, cause)
}

package middleware

import (
	"cmp"
	"context"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/fabric"
)

// Defaults of [Dedup].
const (
	DefaultDedupHeader = "Idempotency-Key"
	DefaultWindow      = 2 * time.Minute
	DefaultKeys        = 65_536
)

// Dedup handles once what was sent several times, by whomever repeats: a [Retry]
// inside it on the sender's side, or a program that sets the key by itself and lives
// on after a crash. It is needed only where errors are repeated after which the message
// may have arrived.
//
// A message that was handled without an error is not handled again: if it is a
// request, the answer is [ErrDuplicate], else it counts as handled. One whose handling
// failed is. One that comes while the first is being handled waits.
//
// What was handled is known as long as the wrapped handler lives, within the bounds
// below. It is not known to another process, nor after a restart.
type Dedup struct {
	// Header has the key. A sender sets it unless the message has one. A message
	// without it is handled as it is. Default [DefaultDedupHeader].
	Header string
	// Key is where a handler takes the key from instead. Keys of different senders are
	// different. An empty one is none. [ByID] costs no header; Message.ID alone is not a
	// key: a process that starts again begins with 1.
	Key func(*fabric.Message) string
	// Window is how long a key is remembered from the first message with it. Default
	// [DefaultWindow].
	Window time.Duration
	// Keys is how many are remembered at most, the newest. Default [DefaultKeys].
	Keys int
	// OnDuplicate is told of each message that was not handled again.
	OnDuplicate func(*fabric.Message)
}

// ByID is a Key of Dedup: the ID, within the life of the sender. Who sends a message again
// must give it the ID that it had, and no other message that one: so either it chooses all
// of its IDs ([fabric.Message].ID), or those it chooses are above what the node will come
// to, such as from 2^32.
func ByID(m *fabric.Message) string {
	if m.Epoch() == "" {
		return ""
	}
	return m.Epoch() + "." + strconv.FormatUint(m.ID, 10)
}

// Sender gives messages a key, unless Key says what else is one.
func (d Dedup) Sender(next Sender) Sender {
	if d.Key != nil {
		return next
	}
	header := cmp.Or(d.Header, DefaultDedupHeader)
	return func(ctx context.Context, m *fabric.Message, request bool) (*fabric.Message, error) {
		if len(m.Header[header]) == 0 {
			keyed := *m
			keyed.Header = maps.Clone(m.Header)
			if keyed.Header == nil {
				keyed.Header = make(nats.Header, 1)
			}
			keyed.Header[header] = []string{nuid.Next()}
			m = &keyed
		}
		return next(ctx, m, request)
	}
}

// Handler does not let duplicates through to next.
func (d Dedup) Handler(next Handler) Handler {
	header := cmp.Or(d.Header, DefaultDedupHeader)
	if d.Key == nil {
		d.Key = func(m *fabric.Message) string {
			if v := m.Header[header]; len(v) > 0 {
				return v[0]
			}
			return ""
		}
	}
	s := &seen{window: cmp.Or(d.Window, DefaultWindow), keys: cmp.Or(d.Keys, DefaultKeys), m: make(map[origin]*once)}
	return func(ctx context.Context, m *fabric.Message) ([]byte, error) {
		key := d.Key(m)
		if key == "" {
			return next(ctx, m)
		}
		o, first, err := s.begin(ctx, origin{m.From, key})
		switch {
		case err != nil:
			return nil, err
		case first:
			defer s.end(o)
			data, err := next(ctx, m)
			o.handled = err == nil
			return data, err
		}
		if d.OnDuplicate != nil {
			d.OnDuplicate(m)
		}
		if m.IsRequest() {
			return nil, encode(ErrDuplicate, ErrDuplicate)
		}
		return nil, nil
	}
}

type origin struct {
	from fabric.PID
	key  string
}

// once is one message, however often it comes.
type once struct {
	origin  origin
	since   time.Time
	done    chan struct{} // closed when the first was handled
	handled bool          // without an error; written before done is closed
}

type seen struct {
	window time.Duration
	keys   int

	mu    sync.Mutex // guards the fields below
	m     map[origin]*once
	order []*once // by since; those that failed are in it still, and no longer in m
}

// begin returns the once of a message, and whether this is the first of it, to be
// handled, and to be ended. If not, it was handled.
func (s *seen) begin(ctx context.Context, from origin) (o *once, first bool, err error) {
	for {
		s.mu.Lock()
		now := time.Now()
		o := s.m[from]
		if o == nil || now.Sub(o.since) >= s.window {
			o = &once{origin: from, since: now, done: make(chan struct{})}
			s.m[from] = o
			s.order = append(s.order, o)
			s.forget(now)
			s.mu.Unlock()
			return o, true, nil
		}
		s.mu.Unlock()
		select {
		case <-o.done:
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
		if o.handled {
			return o, false, nil
		}
	}
}

// end has those that wait for o go on.
func (s *seen) end(o *once) {
	if !o.handled {
		s.mu.Lock()
		s.drop(o)
		s.mu.Unlock()
	}
	close(o.done)
}

// forget drops what is too old or too much. s.mu must be held.
func (s *seen) forget(now time.Time) {
	n := 0
	for n < len(s.order) && (len(s.order)-n > s.keys || now.Sub(s.order[n].since) >= s.window) {
		s.drop(s.order[n])
		n++
	}
	clear(s.order[:n]) // what append leaves behind must not hold it
	s.order = s.order[n:]
}

// drop needs s.mu.
func (s *seen) drop(o *once) {
	if s.m[o.origin] == o {
		delete(s.m, o.origin)
	}
}

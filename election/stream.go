package election

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/kv"
)

// tryFor bounds one attempt to publish.
const tryFor = 2 * time.Second

// Error codes of JetStream that a guarded write meets.
const (
	codeWrongLast = 10071 // the guard does not hold
	codeInProcess = 10158 // a message with the ID is in process
	codeInFlight  = 10164 // another write under the guard is in flight
)

// A fenceRecord is what a term writes to the fence's subject of a stream.
type fenceRecord struct {
	Election string     `json:"election"`
	PID      fabric.PID `json:"pid"`
	Term     uint64     `json:"term"`
	Token    uint64     `json:"token"`
	Nonce    string     `json:"nonce"`
}

// A StreamPublisher publishes to one stream as long as no later term has fenced it. It
// is safe for concurrent use.
type StreamPublisher struct {
	js      jetstream.JetStream
	term    *Term
	stream  jetstream.Stream
	name    string
	subject string        // of the fence
	window  time.Duration // in which the stream knows a message again
	serial  bool          // one write at a time
	turn    chan struct{} // capacity 1: full means that somebody writes, if serial

	mu       sync.Mutex // guards the fields below
	rev      uint64     // sequence of our fence
	subjects []string   // of the stream, as far as we know
}

// FenceStream fences a stream of the user's for the term: it stores a record with the
// term's token under subject, which must be one of the stream's and used for nothing
// else, unless there is one with a higher token. From then on the publishers of every
// earlier term are refused by the server, each of their messages, in one round trip.
// So a new leader calls it before it reads what the leader before it has written.
//
// The error wraps [ErrFenced] if a later term was there, or this one has ended. The
// stream must keep its messages by limits, and neither mirror nor rename. Nothing else
// may write or delete the fence's records; if limits remove the last one, the publisher
// writes another as soon as it is refused.
//
// The connection of js is best made with [nats.ReconnectBufSize](-1). The publisher sends
// nothing while it is broken; but a repetition in the moment in which it breaks would wait
// in the buffer, and could be stored a second time after an outage longer than the stream's
// Duplicates. Publish has then returned an error that wraps [ErrUnknown].
func FenceStream(ctx context.Context, js jetstream.JetStream, term *Term, stream, subject string) (*StreamPublisher, error) {
	p := &StreamPublisher{js: js, term: term, name: stream, subject: subject, turn: make(chan struct{}, 1)}
	err := p.open(ctx)
	if err == nil {
		err = p.take(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("election %s: fence %s of stream %s: %w", term.e.cfg.Name, subject, stream, err)
	}
	return p, nil
}

// open checks that the stream can be fenced.
func (p *StreamPublisher) open(ctx context.Context) error {
	if p.subject == "" || strings.ContainsAny(p.subject, "*> \t\r\n") {
		return &ConfigError{"subject", "a fence has one subject without wildcards"}
	}
	s, err := p.js.Stream(ctx, p.name)
	if err != nil {
		return err
	}
	p.stream = s
	cfg := s.CachedInfo().Config
	switch {
	case cfg.Retention != jetstream.LimitsPolicy:
		return &ConfigError{"stream", "its consumers remove messages, and so the fence"}
	case cfg.Mirror != nil:
		return &ConfigError{"stream", "it is a mirror"}
	case cfg.SubjectTransform != nil:
		return &ConfigError{"stream", "it renames subjects, and so the fence's"}
	}
	p.window, p.serial, p.subjects = cfg.Duplicates, cfg.Replicas > 1, cfg.Subjects
	return covered(p.subject, p.subjects)
}

// take stores our fence over the one that is there, and makes sure that the term held
// after that: every later leader's is stored over ours.
func (p *StreamPublisher) take(ctx context.Context) error {
	t := p.term
	r := fenceRecord{Election: t.e.cfg.Name, PID: t.e.node.PID(), Term: t.Number(), Token: t.Token(), Nonce: nuid.Next()}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		last, rev, err := p.fence(ctx)
		switch {
		case err != nil:
		case last.Token > r.Token:
			return ErrFenced
		case last.Nonce == r.Nonce:
			if err = p.hold(ctx); err == nil {
				p.set(rev)
			}
			return err
		default:
			m := &nats.Msg{Subject: p.subject, Data: data, Header: nats.Header{}}
			// Its own outcome is read: the record is the last one, or another came.
			_, _, err = p.send(ctx, m, rev)
		}
		if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode != codeWrongLast && api.ErrorCode != codeInFlight {
			return err
		}
		if errors.Is(err, ErrForeign) || isHopeless(err) {
			return err
		}
		if errors.Is(err, jetstream.ErrNoStreamResponse) {
			if lost := p.lost(ctx, n, p.subject); lost != nil {
				return lost
			}
		}
		if err != nil {
			if waitErr := kv.Pause(ctx, n); waitErr != nil {
				return errors.Join(waitErr, err)
			}
		}
	}
}

// hold reports that the term holds now. One that is suspended may wait for that.
func (p *StreamPublisher) hold(ctx context.Context) error {
	err := p.term.grant.Confirm(ctx)
	if err != nil && p.term.grant.Context().Err() != nil {
		return fmt.Errorf("%w: %w", ErrFenced, err)
	}
	return err
}

// fence reads the newest record of the fence. Revision 0: there is none.
func (p *StreamPublisher) fence(ctx context.Context) (r fenceRecord, rev uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	m, err := p.stream.GetLastMsgForSubject(ctx, p.subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return r, 0, nil
	}
	if err != nil {
		return r, 0, err
	}
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Election != p.term.e.cfg.Name || r.Token == 0 {
		return r, 0, fmt.Errorf("%w: message %d under %s", ErrForeign, m.Sequence, p.subject)
	}
	return r, m.Sequence, nil
}

// send tries once to store m, if the fence's sequence is rev. It reports whether m may
// have been sent.
func (p *StreamPublisher) send(ctx context.Context, m *nats.Msg, rev uint64) (ack *jetstream.PubAck, sent bool, err error) {
	if err := p.ready(ctx); err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	m.Header.Set("Nats-Expected-Stream", p.name)
	m.Header.Set("Nats-Expected-Last-Subject-Sequence", strconv.FormatUint(rev, 10))
	if m.Subject != p.subject {
		m.Header.Set("Nats-Expected-Last-Subject-Sequence-Subject", p.subject)
	}
	ack, err = p.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	return ack, !isUnsent(err), err
}

func (p *StreamPublisher) set(rev uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rev = max(p.rev, rev)
}

func (p *StreamPublisher) last() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rev
}

// Publish stores data under subject, one of the stream's, if no later term has fenced
// the stream; else the error wraps [ErrFenced]. It tries again until it knows, as long
// as ctx allows and the stream would recognise the message as a duplicate, and
// otherwise fails with an error that wraps [ErrUnknown]; without it, nothing was stored.
// A subject that is not the stream's is refused with a [*ConfigError], and what the
// connection will never send, because it is too large or the connection is closed, with
// the error of nats.go, at once.
func (p *StreamPublisher) Publish(ctx context.Context, subject string, data []byte) (*jetstream.PubAck, error) {
	return p.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: data})
}

// PublishMsg is Publish of a message with headers. A Nats-Msg-Id is kept; without one
// the message gets a new one. Headers that begin with Nats-Expected- are the guard's, and
// Nats-Rollup would remove the fence: a message with one is refused with a [*ConfigError].
// On a stream of several replicas messages are stored one
// after the other, because the server admits one under a guard; on one of a single
// replica as many at a time as are published.
func (p *StreamPublisher) PublishMsg(ctx context.Context, msg *nats.Msg) (*jetstream.PubAck, error) {
	ack, err := p.publish(ctx, msg)
	if err != nil {
		return nil, fmt.Errorf("election %s: publish to %s: %w", p.term.e.cfg.Name, msg.Subject, err)
	}
	return ack, nil
}

func (p *StreamPublisher) publish(ctx context.Context, msg *nats.Msg) (*jetstream.PubAck, error) {
	if err := p.admit(ctx, msg); err != nil {
		return nil, err
	}
	m := &nats.Msg{Subject: msg.Subject, Data: msg.Data, Header: nats.Header{}}
	maps.Copy(m.Header, msg.Header)
	if m.Header.Get("Nats-Msg-Id") == "" {
		m.Header.Set("Nats-Msg-Id", nuid.Next())
	}
	if p.serial {
		select {
		case p.turn <- struct{}{}:
			defer func() { <-p.turn }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	var began time.Time // the first attempt that may have been stored
	doubt := false
	for n := 0; ; n++ {
		if p.term.grant.Released() {
			return nil, inDoubt(ErrFenced, doubt)
		}
		if !doubt {
			began = time.Now()
		}
		rev := p.last()
		ack, sent, err := p.send(ctx, m, rev)
		if err == nil {
			return ack, nil
		}
		api, definite := errors.AsType[*jetstream.APIError](err)
		switch {
		case isHopeless(err), !sent && ctx.Err() != nil:
			return nil, inDoubt(err, doubt || sent)
		case !sent: // it may be connected soon
		case errors.Is(err, jetstream.ErrNoStreamResponse): // nobody received it
			if lost := p.lost(ctx, n, m.Subject); lost != nil {
				return nil, inDoubt(lost, doubt)
			}
		case !definite:
			doubt = true
		case api.ErrorCode == codeWrongLast:
			err = p.refused(ctx, rev)
			if errors.Is(err, ErrFenced) || errors.Is(err, ErrForeign) {
				return nil, inDoubt(err, doubt)
			}
		case api.ErrorCode != codeInFlight && api.ErrorCode != codeInProcess:
			return nil, inDoubt(err, doubt)
		}
		if doubt && time.Since(began)+tryFor > p.window {
			return nil, inDoubt(err, doubt) // a repetition could be stored twice
		}
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return nil, inDoubt(errors.Join(waitErr, err), doubt)
		}
	}
}

// refused finds out why a write guarded by rev was.
func (p *StreamPublisher) refused(ctx context.Context, rev uint64) error {
	r, last, err := p.fence(ctx)
	switch {
	case err != nil:
		return err
	case r.Token > p.term.Token():
		return ErrFenced
	case r.Token == p.term.Token() && last >= rev: // the same term has fenced it again
		if err = p.hold(ctx); err == nil {
			p.set(last)
		}
		return err
	case last < rev && last != 0:
		return nil // from the past
	}
	return p.take(ctx) // the fence was removed
}

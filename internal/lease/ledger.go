package lease

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// MaxEntry bounds a value of [Grant.Put], in bytes.
const MaxEntry = 64 << 10

// KeyEntry names what the holders of an election's claim keep under key.
func KeyEntry(name, key string) string { return "e." + name + "." + key }

// An EntryRecord is something that the holder of a claim keeps in the bucket.
type EntryRecord struct {
	Key   string `json:"key"`
	PID   string `json:"pid"`
	Token uint64 `json:"token"` // of the grant under which it was written last
	// Text is the value if that is text, else Data; neither if there is none.
	Text  *string `json:"text,omitempty"`
	Data  []byte  `json:"data,omitempty"`
	Nonce string  `json:"nonce"`
}

func (r *EntryRecord) set(value []byte) {
	if utf8.Valid(value) {
		r.Text = new(string(value))
	} else {
		r.Data = value
	}
}

// value is nil if there is none.
func (r EntryRecord) value() []byte {
	if r.Text != nil {
		return []byte(*r.Text)
	}
	return r.Data
}

// parseEntry reads what is kept; nothing is the zero record.
func parseEntry(e kv.Entry) (r EntryRecord, err error) {
	if e.Value == nil {
		return r, nil
	}
	err = parse(e, &r)
	if err == nil && (r.Key != e.Key || r.Token == 0) {
		err = &ForeignError{Key: e.Key}
	}
	return r, err
}

// A ledger is what a grant writes beside its claim. One write is under way at a time,
// because a server that replicates admits one under a guard.
//
// Every write is guarded by the revision of the claim's record, so that it is refused
// once the claim is another's. What that guard does not order is our own writes: one
// whose outcome is unknown may land after a later one. So after such a write the
// claim's record is written anew, which changes its revision: what was on its way
// under the old one is refused for ever.
type ledger struct {
	pen  chan struct{}   // capacity 1: full means that somebody writes
	open context.Context // ends when the claim is given back, or with the session
	shut context.CancelFunc

	// Who has the pen may use the fields below.
	rev     uint64 // of the claim's record
	unsure  bool   // a write under rev may yet land
	rewrite *ClaimRecord
	known   map[string]uint64 // newest revisions, of keys that we stored and are sure of
}

func (l *ledger) init(ctx context.Context, rev uint64) {
	l.pen, l.rev, l.known = make(chan struct{}, 1), rev, map[string]uint64{}
	l.open, l.shut = context.WithCancel(ctx)
}

// take takes the pen until drop is called. The context that it returns ends with the
// ledger, too.
func (l *ledger) take(ctx context.Context) (_ context.Context, drop func(), err error) {
	if l.open.Err() != nil {
		return nil, nil, ErrReleased
	}
	select {
	case l.pen <- struct{}{}:
	case <-l.open.Done():
		return nil, nil, ErrReleased
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.open, func() { cancel(ErrReleased) })
	return ctx, func() { stop(); cancel(nil); <-l.pen }, nil
}

// Put keeps value under key, a key of [KeyEntry], if the claim is still this grant's;
// else the error wraps [ErrFenced], or [ErrReleased] if the claim is being given back.
// An error that wraps [kv.ErrUnknown], perhaps as well, says that the outcome is not
// known: value may be stored, but not any more once a later Put or Get, of this grant or
// another, has returned without an error.
func (g *Grant) Put(ctx context.Context, key string, value []byte) error {
	ctx, drop, err := g.book.take(ctx)
	if err != nil {
		return err
	}
	defer drop()
	r := EntryRecord{Key: key, PID: g.record.PID, Token: g.Token, Nonce: nuid.Next()}
	r.set(value)
	data := encode(r)
	doubt := false
	for n := 0; ; n++ {
		if err = g.sure(ctx); err == nil {
			var rev uint64
			rev, err = g.c.s.b.Put(ctx, kv.Write{Key: key, Value: data, GuardKey: g.c.key, GuardRev: g.book.rev})
			switch {
			case err == nil:
				g.book.known[key] = rev
				return nil
			case errors.Is(err, kv.ErrUnknown):
				doubt, g.book.unsure = true, true
				delete(g.book.known, key) // what was known may be the past
			case errors.Is(err, kv.ErrRefused) && g.fenced(ctx):
				err = fmt.Errorf("%w: %w", ErrFenced, err)
			case !errors.Is(err, kv.ErrRefused) && !errors.Is(err, kv.ErrBusy) && !doubt:
				return err
			}
		}
		if errors.Is(err, ErrFenced) && doubt {
			return fmt.Errorf("%w: %w", err, kv.ErrUnknown) // an earlier attempt, that is
		}
		if errors.Is(err, ErrFenced) {
			return err
		}
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			if doubt {
				return fmt.Errorf("%w: %w", kv.ErrUnknown, waitErr)
			}
			return gaveUp(waitErr, err)
		}
	}
}

// gaveUp is the error of a call that waitErr ended after an attempt failed with err. Of a
// write whose outcome is unknown it keeps the text only: that was not the caller's.
func gaveUp(waitErr, err error) error {
	if errors.Is(err, kv.ErrUnknown) {
		return fmt.Errorf("%w: %v", waitErr, err)
	}
	return errors.Join(waitErr, err)
}

// Get returns what is kept under key, or nil. It is what was stored last, not what
// some server thinks it was: before the first value of a key is returned, it is stored
// again in this grant's name, under the guard that it is the newest. The error wraps
// [ErrFenced] if a later grant has been there.
func (g *Grant) Get(ctx context.Context, key string) ([]byte, error) {
	ctx, drop, err := g.book.take(ctx)
	if err != nil {
		return nil, err
	}
	defer drop()
	for n := 0; ; n++ {
		value, err := g.read(ctx, key)
		if err == nil {
			return value, nil
		}
		_, foreign := errors.AsType[*ForeignError](err)
		if foreign || errors.Is(err, ErrFenced) {
			return nil, err
		}
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return nil, gaveUp(waitErr, err)
		}
	}
}

func (g *Grant) read(ctx context.Context, key string) ([]byte, error) {
	if err := g.sure(ctx); err != nil {
		return nil, err
	}
	e, err := g.c.s.b.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	r, err := parseEntry(e)
	if err != nil {
		return nil, err
	}
	if r.Token > g.Token {
		return nil, fmt.Errorf("%w: %s has token %d", ErrFenced, key, r.Token)
	}
	if known, ok := g.book.known[key]; ok {
		if e.Rev < known {
			return nil, fmt.Errorf("%s is read from the past", key)
		}
		return r.value(), nil
	}
	r.Key, r.PID, r.Token, r.Nonce = key, g.record.PID, g.Token, nuid.Next()
	rev, err := g.c.s.b.Settle(ctx, key, e.Rev, encode(r), 0)
	if err != nil {
		return nil, err
	}
	g.book.known[key] = rev
	return r.value(), nil
}

// sure returns once no earlier write can land any more.
func (g *Grant) sure(ctx context.Context) error {
	l := &g.book
	if !l.unsure {
		return nil
	}
	var rev uint64
	var err error
	if l.rewrite == nil {
		r := g.record
		r.Token, r.Nonce = g.Token, nuid.Next()
		l.rewrite = &r
		rev, err = g.c.s.b.Settle(ctx, g.c.key, l.rev, encode(r), 0)
	} else {
		rev, err = g.c.s.b.Resettle(ctx, g.c.key, l.rev, encode(*l.rewrite), 0)
	}
	switch {
	case err == nil:
		l.rev, l.unsure, l.rewrite = rev, false, nil
		return nil
	case errors.Is(err, kv.ErrRefused) && g.fenced(ctx):
		return fmt.Errorf("%w: %w", ErrFenced, err)
	}
	return err
}

// fenced reads whether the claim has a record later than ours. A server that was just
// deposed may refuse what the next one accepts, and shows an older one.
func (g *Grant) fenced(ctx context.Context) bool {
	e, err := g.c.s.b.Get(ctx, g.c.key)
	if err == nil && g.book.rewrite != nil { // ours may have landed
		r, parseErr := ParseClaim(e)
		return e.Rev > g.book.rev && (parseErr != nil || r.Nonce != g.book.rewrite.Nonce)
	}
	return err == nil && e.Rev > g.book.rev
}

// Released reports whether the grant is being given back.
func (g *Grant) Released() bool { return g.book.open.Err() != nil }

// giveBack closes the ledger, waits for who writes, and releases the claim at the
// revision that it has.
func (g *Grant) giveBack(to string) error {
	l := &g.book
	ctx, cancel := g.c.s.parting()
	defer cancel()
	l.shut()
	l.pen <- struct{}{}
	defer func() { <-l.pen }()
	if l.rewrite != nil {
		rev, err := g.c.s.b.Resettle(ctx, g.c.key, l.rev, encode(*l.rewrite), 0)
		if errors.Is(err, kv.ErrRefused) {
			return nil // it is another's already
		}
		if err != nil {
			return fmt.Errorf("release %s: %w", g.c.key, err)
		}
		l.rev, l.rewrite = rev, nil
	}
	return g.c.release(ctx, l.rev, g.record, to)
}

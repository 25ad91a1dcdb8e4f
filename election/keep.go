package election

import (
	"context"
	"errors"
	"fmt"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/token"
)

// MaxState bounds a value of [Term.Put], in bytes.
const MaxState = lease.MaxEntry

// Put keeps a small value under key for this leader and the next: a cursor, a
// checkpoint. The bucket stores it only if the term's claim is as it was taken: once
// another leads, or the claim was given back, the error wraps [ErrFenced], whatever
// this process believes. Values outlive the term; Puts of one term are made one after
// the other. A key is a name as an election's is.
//
// Put works until Resign is called, so also while the term is suspended, and after
// its context has ended, for the last word of a leader that stops. If ctx ends before
// the outcome is known, the error wraps [ErrUnknown]; the next Put or Get that
// succeeds makes sure that it can no longer be stored. A Put that is under way while
// the term is given up may fail with both: the term is over, and this value may have
// been stored as its last.
func (t *Term) Put(ctx context.Context, key string, value []byte) error {
	if err := token.Check("key", key); err != nil {
		return err
	}
	if len(value) > MaxState {
		return fmt.Errorf("election %s: put %s: %w: %d bytes, at most %d", t.e.cfg.Name, key, ErrTooLarge, len(value), MaxState)
	}
	return t.kept("put", key, t.grant.Put(ctx, lease.KeyEntry(t.e.cfg.Name, key), value))
}

// Get returns what the last Put under key stored, of this leader or of one before it,
// or nil if there was none. It is never an older value. The first Get of a key in a
// term costs a write: from then on no earlier leader can change the key. If a later
// one has been there, the error wraps [ErrFenced].
func (t *Term) Get(ctx context.Context, key string) ([]byte, error) {
	if err := token.Check("key", key); err != nil {
		return nil, err
	}
	value, err := t.grant.Get(ctx, lease.KeyEntry(t.e.cfg.Name, key))
	return value, t.kept("get", key, err)
}

// kept makes an error of the ledger the public one.
func (t *Term) kept(op, key string, err error) error {
	if err == nil {
		return nil
	}
	switch foreign, ok := errors.AsType[*lease.ForeignError](err); {
	case ok:
		err = fmt.Errorf("%w: key %s", ErrForeign, foreign.Key)
	case errors.Is(err, lease.ErrFenced), errors.Is(err, lease.ErrReleased):
		unknown := errors.Is(err, kv.ErrUnknown)
		err = ErrFenced
		if unknown { // it had been sent when the term ended
			err = fmt.Errorf("%w: %w", ErrFenced, ErrUnknown)
		}
	case errors.Is(err, kv.ErrUnknown):
		err = fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return fmt.Errorf("election %s: %s %s: %w", t.e.cfg.Name, op, key, err)
}

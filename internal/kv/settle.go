package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Settle writes value under key's own revision rev until the outcome is known.
// It returns the record's revision if value is the key's record, and an error that
// wraps [ErrRefused] if another write came first, or came since and hides whether
// ours landed, or if the bucket was lost. The value must be
// unlike any other ever written to the key (a nonce in it), because a read-back
// recognises it by content. If ctx ends first the error wraps [ErrUnknown]: the
// write may still land, and the caller must settle it later with [Bucket.Resettle].
func (b *Bucket) Settle(ctx context.Context, key string, rev uint64, value []byte, ttl time.Duration) (uint64, error) {
	return b.settle(ctx, key, rev, value, ttl, false)
}

// Resettle settles a write whose earlier call returned [ErrUnknown]: it may have
// been stored since, so that being refused proves nothing.
func (b *Bucket) Resettle(ctx context.Context, key string, rev uint64, value []byte, ttl time.Duration) (uint64, error) {
	return b.settle(ctx, key, rev, value, ttl, true)
}

// settle: doubt says that an earlier attempt may have been applied.
func (b *Bucket) settle(ctx context.Context, key string, rev uint64, value []byte, ttl time.Duration, doubt bool) (uint64, error) {
	created := b.createdAt()
	for n := 0; ; n++ {
		got, err := b.Put(ctx, Write{Key: key, Value: value, GuardRev: rev, TTL: ttl})
		switch {
		case err == nil:
			return got, b.counts(ctx, rev, created)
		case errors.Is(err, ErrRefused) && !doubt, errors.Is(err, ErrReplaced):
			return 0, err
		case errors.Is(err, ErrRefused):
			e, readErr := b.Get(ctx, key)
			if readErr == nil && e.Rev > rev {
				if !bytes.Equal(e.Value, value) {
					return 0, err
				}
				if err = b.look(ctx); err == nil {
					return e.Rev, b.counts(ctx, rev, created)
				}
				if errors.Is(err, ErrReplaced) {
					return 0, err
				}
			}
			if lost, _ := b.replaced(ctx, created); lost {
				return 0, fmt.Errorf("%w: %w", ErrReplaced, err)
			}
		case errors.Is(err, ErrUnknown):
			doubt = true
		case errors.Is(err, ErrBusy):
		default:
			if !doubt {
				return 0, err
			}
		}
		if waitErr := Pause(ctx, n); waitErr != nil {
			// The text only: a refusal after an attempt in doubt is no outcome.
			return 0, fmt.Errorf("%w: %v", ErrUnknown, err)
		}
	}
}

// counts checks a write that was guarded by absence: it may have landed in a
// bucket that was made anew since the absence was read, where that proves nothing.
func (b *Bucket) counts(ctx context.Context, rev uint64, created time.Time) error {
	if rev != 0 {
		return nil
	}
	for n := 0; ; n++ {
		lost, err := b.replaced(ctx, created)
		if err == nil && lost {
			return fmt.Errorf("%w: %w", ErrReplaced, ErrRefused)
		}
		if err == nil {
			return nil
		}
		if waitErr := Pause(ctx, n); waitErr != nil {
			return fmt.Errorf("%w: %w", ErrUnknown, err)
		}
	}
}

// createdAt returns when the stream was created that was opened last.
func (b *Bucket) createdAt() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.created
}

// replaced reports whether the stream is not the one that was created at created.
func (b *Bucket) replaced(ctx context.Context, created time.Time) (bool, error) {
	info, err := b.info(ctx)
	if errors.Is(err, ErrNoBucket) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return !info.Created.Equal(created), nil
}

// Gone reports whether the bucket that was opened is known to be lost.
func (b *Bucket) Gone(ctx context.Context) bool {
	lost, err := b.replaced(ctx, b.createdAt())
	return err == nil && lost
}

// Lost reports whether the bucket that gave out revision rev is known to be lost, or closed
// since.
func (b *Bucket) Lost(ctx context.Context, rev uint64) bool {
	b.mu.Lock()
	since := b.openRev > rev
	b.mu.Unlock()
	return since || b.Gone(ctx)
}

// Pause waits before try n+1: 25 ms doubling to 200 ms, with jitter, so that the
// first to come back after an outage are those that were there before.
func Pause(ctx context.Context, n int) error { return PauseUpTo(ctx, n, 200*time.Millisecond) }

// PauseUpTo is Pause that waits no longer than longest, before the jitter of a quarter.
func PauseUpTo(ctx context.Context, n int, longest time.Duration) error {
	t := time.NewTimer(pauseTime(n, longest))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// PauseTime is how long Pause waits, for those who have something else to do meanwhile.
func PauseTime(n int) time.Duration { return pauseTime(n, 200*time.Millisecond) }

func pauseTime(n int, longest time.Duration) time.Duration {
	d := min(25*time.Millisecond<<min(n, 3), 200*time.Millisecond, longest)
	return d + rand.N(d/4)
}

package kv

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A bucket goes back in time when its server forgot writes that it had acknowledged:
// its disk did not keep what was not synced, or an older backup was put in its place.
// Claims that were taken since are gone, and their revisions would be given out once
// more. Who has seen a later revision than the server gives out has the proof. It
// stops believing at once, has everyone else look, closes the bucket for one longest
// lease, as if it were new, and has the server count on from the highest revision.

// maxRaise bounds the revisions that are skipped one by one. More than that is not a
// server that forgot something, but another bucket: a person must mend it.
const maxRaise = 1_000_000

// accept notes the revision of an acknowledged write, where before was the highest
// known when it was sent. A lower one is an error that wraps [ErrReplaced] and
// [ErrRefused]: the write counts for nothing, and so do all later ones until the bucket is
// opened again. So are the errors of look.
func (b *Bucket) accept(ctx context.Context, key string, rev, before uint64) error {
	b.mu.Lock()
	back := rev <= before
	b.rolled = b.rolled || back
	b.highest = max(b.highest, rev)
	b.mu.Unlock()
	if back {
		b.logger.Warn("the bucket went back in time", "bucket", b.cfg.Name, "rev", rev, "seen", before)
		return fmt.Errorf("revision %d after %d: %w: %w", rev, before, ErrReplaced, ErrRefused)
	}
	if key == KeyOpen {
		return nil // whose word that is
	}
	return b.look(ctx)
}

// look makes sure, if somebody asked to look, or the connection was away since the last
// time, that the bucket has not been closed since this process opened it: others may have
// noticed meanwhile that it went back in time, and have had it count on, so that no
// revision shows it any more. If it was, the error wraps [ErrReplaced] and [ErrRefused]; if
// that cannot be read, [ErrUnknown].
func (b *Bucket) look(ctx context.Context) error {
	connects := b.connects()
	b.mu.Lock()
	due, rolled := b.suspect || b.looked != connects, b.rolled
	b.mu.Unlock()
	if rolled {
		return fmt.Errorf("the bucket is not open: %w: %w", ErrReplaced, ErrRefused)
	}
	if !due {
		return nil
	}
	e, err := b.Get(ctx, KeyOpen)
	if err != nil {
		return fmt.Errorf("%w: the write was taken, and whether the bucket is the same: %w", ErrUnknown, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.suspect, b.looked = false, connects
	if b.openRev != 0 && e.Rev != b.openRev {
		b.rolled = true
		return fmt.Errorf("the bucket was closed: %w: %w", ErrReplaced, ErrRefused)
	}
	return nil
}

// connects counts the connections that the client has made. It is ahead of everything
// that is sent over a new one, which no callback is.
func (b *Bucket) connects() uint64 { return b.nc.Stats().Reconnects }

// Suspect has the next write look whether the bucket is still open as it was: another
// process asked everyone to.
func (b *Bucket) Suspect() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.suspect = true
}

// highestSeen is what the next revision must be above.
func (b *Bucket) highestSeen() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.highest
}

// raise closes a bucket that went back in time, unless somebody else did, and returns
// when its revisions are above all that this process has seen.
func (b *Bucket) raise(ctx context.Context) error {
	if _, err := b.cfg.Alone(ctx); err != nil { // others look before revisions hide it
		b.logger.Debug("cannot ask the others to look", "err", err)
	}
	for n := 0; ; n++ {
		e, err := b.Get(ctx, KeyOpen)
		if err != nil {
			return err
		}
		info, err := b.info(ctx)
		if err != nil {
			return err
		}
		b.mu.Lock()
		highest, closed := b.highest, e.Rev != b.openRev
		b.mu.Unlock()
		last := info.State.LastSeq
		switch {
		case last >= highest && closed:
			return nil
		case last < highest && highest-last > maxRaise:
			return &ConfigError{Bucket: b.cfg.Name, Field: "last_seq", Want: fmt.Sprintf("above %d", highest), Got: last}
		case !b.cfg.NoOpen:
			if err := b.skip(ctx, e.Rev, highest); err != nil && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrUnknown) {
				return err
			}
		}
		if err := Pause(ctx, n); err != nil {
			return fmt.Errorf("the bucket went back in time: %w", err)
		}
	}
}

// skip writes closed records, each of which uses up one revision, from under the guard
// of rev until they are above highest.
func (b *Bucket) skip(ctx context.Context, rev, highest uint64) error {
	value, err := b.openRecord(time.Time{})
	if err != nil {
		return err
	}
	for first := true; first || rev <= highest; first = false {
		if rev, err = b.store(ctx, Write{Key: KeyOpen, Value: value, GuardRev: rev}); err != nil {
			return err
		}
	}
	b.saw(rev)
	return nil
}

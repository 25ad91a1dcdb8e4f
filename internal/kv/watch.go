package kv

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Reread is how often a watch reads what the feed may have missed.
const Reread = 5 * time.Second

const (
	// rereadAll is how often a watch of many keys reads again what it has not been told of
	// since, or rereadEach for every key if that is longer.
	rereadAll  = 6 * Reread
	rereadEach = 200 * time.Millisecond
	// fewChanges is how many changes a watch reads one after the other.
	fewChanges = 32
)

// A Watch follows the keys that match a pattern. Close it when done.
type Watch struct {
	b       *Bucket
	pattern string
	sub     *nats.Subscription
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	changed chan struct{} // capacity 1: full means there is something to take

	// Of run alone.
	all     time.Time // when everything had been read, or was told since; zero: to be read
	created time.Time // of the stream, at the last reading
	marks   [2]uint64 // the stream's last revision at the reading before the last, and at the last

	mu     sync.Mutex // guards the fields below
	known  map[string]Entry
	dirty  map[string]struct{}
	synced bool
}

// Watch subscribes to the feed and begins to read. It does not wait for either.
// The watch goes on until ctx ends or Close.
func (b *Bucket) Watch(ctx context.Context, pattern string) (*Watch, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &Watch{
		b: b, pattern: pattern, cancel: cancel,
		changed: make(chan struct{}, 1),
		known:   map[string]Entry{}, dirty: map[string]struct{}{},
	}
	sub, err := b.nc.Subscribe(b.cfg.Feed+"."+pattern, w.ring)
	if err != nil {
		cancel()
		return nil, err
	}
	w.sub = sub
	w.wg.Go(func() { w.run(ctx) })
	return w, nil
}

// Changed is ready when [Watch.Take] has something new.
func (w *Watch) Changed() <-chan struct{} { return w.changed }

// Take returns the entries that changed since the last Take, newest state only,
// and whether everything that was there at the beginning has been read. An entry
// without a Value is a key that is gone.
func (w *Watch) Take() (changed []Entry, synced bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.dirty {
		changed = append(changed, w.known[key])
		if w.known[key].Value == nil {
			delete(w.known, key)
		}
	}
	clear(w.dirty)
	return changed, w.synced
}

// Close stops the watch and waits for its goroutine.
func (w *Watch) Close() {
	w.cancel()
	w.sub.Unsubscribe() // fails on a closed connection only, where nothing is left to stop
	w.wg.Wait()
}

// OnRemoval calls f when the feed says that the key was removed, until stop is called. It
// may miss that, and anybody may publish there: f has it looked at. It must not block.
func (b *Bucket) OnRemoval(key string, f func()) (stop func(), err error) {
	sub, err := b.nc.Subscribe(b.cfg.Feed+"."+key, func(m *nats.Msg) {
		if removal(m.Header) {
			f()
		}
	})
	if err != nil {
		return nil, err
	}
	return func() { sub.Unsubscribe() }, nil // fails on a closed connection only
}

// removal reports whether a message of the feed marks a deletion.
func removal(h nats.Header) bool {
	return lastValue(h, "KV-Operation") != "" || lastValue(h, "Nats-Marker-Reason") != ""
}

// ring takes one message of the feed.
func (w *Watch) ring(m *nats.Msg) {
	rev, err := strconv.ParseUint(lastValue(m.Header, "Nats-Sequence"), 10, 64)
	if err != nil {
		return
	}
	e := Entry{Key: strings.TrimPrefix(m.Subject, w.b.cfg.Feed+"."), Rev: rev, Value: m.Data, Seen: time.Now()}
	if removal(m.Header) {
		e.Value = nil
	} else if e.Value == nil {
		e.Value = []byte{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if rev > w.known[e.Key].Rev {
		w.set(e)
	}
}

// lastValue: the server appends its own value to one that a publisher forged.
func lastValue(h nats.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[len(v)-1]
	}
	return ""
}

// set stores e and rings. The caller holds w.mu.
func (w *Watch) set(e Entry) {
	w.known[e.Key] = e
	w.dirty[e.Key] = struct{}{}
	w.wake()
}

func (w *Watch) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// run reads again and again.
func (w *Watch) run(ctx context.Context) {
	for tries := 0; ctx.Err() == nil; {
		nudged := w.b.Nudged()
		err := w.read(ctx)
		if err != nil {
			w.b.logger.Debug("cannot read what is watched", "pattern", w.pattern, "err", err)
			if Pause(ctx, tries) != nil {
				return
			}
			tries++
			select {
			case <-nudged: // while it failed
				w.all = time.Time{}
			default:
			}
			continue
		}
		tries = 0
		timer := time.NewTimer(Reread*4/5 + rand.N(Reread*2/5))
		select {
		case <-ctx.Done():
		case <-nudged:
			w.all = time.Time{}
		case <-timer.C:
		}
		timer.Stop()
	}
}

// read reads what may have changed and not been told, and takes it in.
func (w *Watch) read(ctx context.Context) error {
	began := time.Now()
	listed, entries, err := w.look(ctx, began)
	if err != nil && !errors.Is(err, ErrNoBucket) { // without a bucket there is nothing
		return err
	}
	ended := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range entries {
		k := w.known[e.Key]
		gone := e.Value == nil
		if gone {
			delete(listed, e.Key)
		}
		switch {
		case e.Rev > k.Rev && !(gone && k.Value == nil): // a deletion, too, if it is marked
			w.set(e)
		case e.Rev < k.Rev && !gone && settled(k, began):
			w.set(e)
		}
	}
	for key, k := range w.known {
		if _, ok := listed[key]; !ok && k.Value != nil && settled(k, began) {
			w.set(Entry{Key: key, Seen: ended}) // a record may have been there until now
		}
	}
	if !w.synced {
		w.synced = true
		w.wake()
	}
	return nil
}

// look returns the keys that there are, and the records of those that may have changed.
//
// These are the ones with a revision after the last reading but one, which the server
// finds for a pattern: not after the last, because a server that was just deposed answers
// from the past. Where too many change to read them one by one, the feed tells of most, and
// those are read that it has not told of for a round, or for half a lease, in which every
// session is renewed. From time to time all are of which nothing was heard since the last
// time, and when the stream is another or has gone back, all.
func (w *Watch) look(ctx context.Context, began time.Time) (listed map[string]struct{}, entries []Entry, err error) {
	if !strings.ContainsAny(w.pattern, "*>") {
		e, err := w.b.Get(ctx, w.pattern)
		return map[string]struct{}{w.pattern: {}}, []Entry{e}, err
	}
	l, err := w.b.keys(ctx, w.pattern)
	if err != nil {
		w.marks = [2]uint64{}
		return nil, nil, err
	}
	if !l.created.Equal(w.created) || l.last < w.marks[1] {
		w.created, w.marks, w.all = l.created, [2]uint64{}, time.Time{}
	}
	since, unread := w.marks[0], l.keys
	full := since == 0 || began.Sub(w.all) > max(rereadAll, time.Duration(len(l.keys))*rereadEach)
	if since != 0 && !w.all.IsZero() {
		all := false
		if w.told(since) <= fewChanges {
			if entries, all, err = w.since(ctx, since); err != nil {
				return nil, nil, err
			}
		}
		unread = w.doubtful(l, entries, func(k Entry) bool {
			switch {
			case full && !k.Seen.After(w.all):
				return true
			case all:
				return k.Rev > since // told, and not found
			}
			return k.Rev > l.last || k.Seen.Before(began.Add(-max(Reread, w.b.Longest()/2)))
		})
	}
	more, err := w.b.getAll(ctx, unread)
	if err != nil {
		return nil, nil, err
	}
	if full {
		w.all = time.Now()
	}
	w.marks = [2]uint64{w.marks[1], l.last}
	listed = make(map[string]struct{}, len(l.keys))
	for _, key := range l.keys {
		listed[key] = struct{}{}
	}
	return listed, append(entries, more...), nil
}

// told returns how many keys the feed has told of a revision of after rev.
func (w *Watch) told(rev uint64) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.known {
		if k.Rev > rev {
			n++
		}
	}
	return n
}

// since reads what has a revision after rev, in their order, and reports whether that is
// all: a few.
func (w *Watch) since(ctx context.Context, rev uint64) (entries []Entry, all bool, err error) {
	for len(entries) < fewChanges {
		e, found, err := w.b.next(ctx, w.pattern, rev+1)
		if err != nil || !found {
			return entries, true, err
		}
		entries, rev = append(entries, e), e.Rev
	}
	return entries, false, nil
}

// doubtful returns the keys of l that are not known, or known to be as doubt says, but for
// those that were read.
func (w *Watch) doubtful(l listing, read []Entry, doubt func(Entry) bool) (keys []string) {
	done := make(map[string]struct{}, len(read))
	for _, e := range read {
		done[e.Key] = struct{}{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range l.keys {
		k, known := w.known[key]
		if _, ok := done[key]; !ok && (!known || doubt(k)) {
			keys = append(keys, key)
		}
	}
	return keys
}

// settled reports whether a read that began at began, and shows something older
// than k or nothing, is to be believed: not if k was learned during the read or
// shortly before, because on R3 a server that was just deposed answers from the
// past. What is still older after a whole round was never in the stream.
func settled(k Entry, began time.Time) bool { return k.Seen.Before(began.Add(-Reread)) }

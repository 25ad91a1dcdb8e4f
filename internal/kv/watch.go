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

// Reread is how often a watch reads everything it follows again.
const Reread = 5 * time.Second

// A Watch follows the keys that match a pattern. Close it when done.
type Watch struct {
	b       *Bucket
	pattern string
	sub     *nats.Subscription
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	changed chan struct{} // capacity 1: full means there is something to take

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

// ring takes one message of the feed.
func (w *Watch) ring(m *nats.Msg) {
	rev, err := strconv.ParseUint(lastValue(m.Header, "Nats-Sequence"), 10, 64)
	if err != nil {
		return
	}
	e := Entry{Key: strings.TrimPrefix(m.Subject, w.b.cfg.Feed+"."), Rev: rev, Value: m.Data, Seen: time.Now()}
	if lastValue(m.Header, "KV-Operation") != "" || lastValue(m.Header, "Nats-Marker-Reason") != "" {
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

// run reads everything again and again.
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
			continue
		}
		tries = 0
		timer := time.NewTimer(Reread*4/5 + rand.N(Reread*2/5))
		select {
		case <-ctx.Done():
		case <-nudged:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (w *Watch) read(ctx context.Context) error {
	began := time.Now()
	entries, err := w.b.List(ctx, w.pattern)
	if err != nil && !errors.Is(err, ErrNoBucket) { // without a bucket there is nothing
		return err
	}
	ended := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	listed := make(map[string]struct{}, len(entries))
	for _, e := range entries {
		listed[e.Key] = struct{}{}
		if k := w.known[e.Key]; e.Rev > k.Rev || e.Rev < k.Rev && settled(k, began) {
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

// settled reports whether a read that began at began, and shows something older
// than k or nothing, is to be believed: not if k was learned during the read or
// shortly before, because on R3 a server that was just deposed answers from the
// past. What is still older after a whole round was never in the stream.
func settled(k Entry, began time.Time) bool { return k.Seen.Before(began.Add(-Reread)) }

package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/latest"
)

// Config says which bucket, and what it needs of the connection.
type Config struct {
	Name     string        // of the bucket: fab_<cluster>_<env>
	Feed     string        // subject prefix that changes are repeated on
	Domain   string        // JetStream domain, or empty
	Replicas int           // when created; 0 = 3 on a cluster, else 1
	Lease    time.Duration // of this process; the longest, if it creates the bucket
	// NoCreate: wait for another to create the bucket. NoOpen: and to open it.
	NoCreate, NoOpen bool

	// Alone reports whether no process of the fabric is connected anywhere.
	Alone func(context.Context) (bool, error)
	// Denied returns the permission violation that the server reported for a
	// publish to subject, if it did.
	Denied func(subject string) error
	Logger *slog.Logger
}

// A round trip of a call whose context allows longer is given up after attempt, and
// after twice as long each time in a row, up to maxAttempt: a server that is behind
// with its work must not be asked the same thing over and over.
const (
	attempt    = time.Second
	maxAttempt = 8 * time.Second
)

// A Bucket is a handle; it may exist before the bucket does.
type Bucket struct {
	nc     *nats.Conn
	cfg    Config
	api    string // "$JS.API." or with a domain
	prefix string // what a key is appended to for a publish
	logger *slog.Logger

	nudged latest.Value[struct{}] // asks every watch to read again

	mu      sync.Mutex    // guards the fields below
	created time.Time     // of the stream, when it was last opened
	longest time.Duration // lease in the fabric
	attempt time.Duration // of the next round trip; 0 is the least
	highest uint64        // revision that was ever seen
	openRev uint64        // of the record that opened the bucket; 0 before
	rolled  bool          // the bucket is known to have gone back in time
	suspect bool          // the next write looks
	looked  uint64        // connects, at the last look
}

// New returns a handle. It does no I/O.
func New(nc *nats.Conn, cfg Config) *Bucket {
	api, prefix := subjects(cfg.Name, cfg.Domain)
	return &Bucket{nc: nc, cfg: cfg, logger: cfg.Logger, api: api, prefix: prefix}
}

// Longest returns the longest lease of the fabric, known once open.
func (b *Bucket) Longest() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(b.longest, b.cfg.Lease)
}

// Nudge makes every watch read again, and who else follows the bucket: the connection was
// away.
func (b *Bucket) Nudge() { b.nudged.Store(struct{}{}) }

// Nudged returns a channel that is closed at the next Nudge.
func (b *Bucket) Nudged() <-chan struct{} {
	_, nudged := b.nudged.Load()
	return nudged
}

// An Entry is the newest record of a key.
type Entry struct {
	Key   string
	Rev   uint64    // 0 if there is no record, and none was deleted
	Value []byte    // nil if absent or deleted
	Seen  time.Time // when this process learned of it, after it was stored
	// Stored is when, by the server's clock; known after a read only. It is for
	// showing, not for deciding.
	Stored time.Time
}

// Get reads one key. An absent one is an Entry with a nil Value, and so is every
// key of a bucket that does not exist, with an error that wraps [ErrNoBucket].
// The read is not linearizable: act on it under a guard only.
func (b *Bucket) Get(ctx context.Context, key string) (Entry, error) {
	e, _, err := b.get(ctx, `{"last_by_subj":"$KV.`+b.cfg.Name+"."+key+`"}`)
	e.Key = key
	if err != nil {
		return e, fmt.Errorf("read %s: %w", key, err)
	}
	return e, nil
}

// next reads the first record of a key that matches pattern with a revision from rev on,
// and reports whether there is one.
func (b *Bucket) next(ctx context.Context, pattern string, rev uint64) (Entry, bool, error) {
	e, found, err := b.get(ctx, `{"seq":`+strconv.FormatUint(rev, 10)+`,"next_by_subj":"$KV.`+b.cfg.Name+"."+pattern+`"}`)
	if err != nil {
		return e, false, fmt.Errorf("read %s from %d: %w", pattern, rev, err)
	}
	return e, found, nil
}

// get reads the record that req names, and reports whether there is one.
func (b *Bucket) get(ctx context.Context, req string) (e Entry, found bool, err error) {
	var resp struct {
		Message struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Hdrs    []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	err = b.call(ctx, verbGet+b.stream(), req, &resp)
	e.Seen = time.Now()
	if a, ok := errors.AsType[*apiError](err); ok && a.ErrCode == codeMessageNotFound {
		return e, false, nil
	}
	if err != nil {
		return e, false, err
	}
	e.Key = strings.TrimPrefix(resp.Message.Subject, "$KV."+b.cfg.Name+".")
	e.Rev, e.Stored = resp.Message.Seq, resp.Message.Time
	b.saw(e.Rev)
	if !deleted(string(resp.Message.Hdrs)) {
		e.Value = append([]byte{}, resp.Message.Data...)
	}
	return e, true, nil
}

// deleted reports whether a raw header block marks a deletion: by a person with
// the stock tools, since the fabric deletes nothing.
func deleted(hdrs string) bool {
	return strings.Contains(hdrs, "KV-Operation:") || strings.Contains(hdrs, "Nats-Marker-Reason:")
}

// List reads every key that matches pattern ("s.*", "c.>").
func (b *Bucket) List(ctx context.Context, pattern string) ([]Entry, error) {
	if !strings.ContainsAny(pattern, "*>") {
		e, err := b.Get(ctx, pattern)
		if err != nil || e.Value == nil {
			return nil, err
		}
		return []Entry{e}, nil
	}
	l, err := b.keys(ctx, pattern)
	if err != nil {
		return nil, err
	}
	entries, err := b.getAll(ctx, l.keys)
	return slices.DeleteFunc(entries, func(e Entry) bool { return e.Value == nil }), err
}

// A listing is which keys match a pattern, those deleted of which something is left
// included, and what the stream was then.
type listing struct {
	keys    []string
	last    uint64 // revision
	created time.Time
}

func (b *Bucket) keys(ctx context.Context, pattern string) (l listing, err error) {
	subject := "$KV." + b.cfg.Name + "."
	for {
		var info struct {
			Total   int       `json:"total"`
			Created time.Time `json:"created"`
			State   struct {
				Last     uint64            `json:"last_seq"`
				Subjects map[string]uint64 `json:"subjects"`
			} `json:"state"`
		}
		req, err := json.Marshal(map[string]any{"subjects_filter": subject + pattern, "offset": len(l.keys)})
		if err != nil {
			return listing{}, err
		}
		if err := b.call(ctx, verbInfo+b.stream(), string(req), &info); err != nil {
			return listing{}, fmt.Errorf("list %s: %w", pattern, err)
		}
		if l.keys == nil {
			l.last, l.created = info.State.Last, info.Created
		}
		for s := range info.State.Subjects {
			l.keys = append(l.keys, strings.TrimPrefix(s, subject))
		}
		if len(info.State.Subjects) == 0 || len(l.keys) >= info.Total {
			return l, nil
		}
	}
}

// readers is how many reads of getAll are on their way at a time.
const readers = 32

func (b *Bucket) getAll(ctx context.Context, keys []string) ([]Entry, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	entries := make([]Entry, len(keys))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(readers, len(keys)) {
		wg.Go(func() {
			for i := range next {
				var err error
				if entries[i], err = b.Get(ctx, keys[i]); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range keys {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return entries, nil
}

// A Write is one record to be stored, if GuardKey still has revision GuardRev.
type Write struct {
	Key      string
	Value    []byte
	GuardKey string // default: Key
	GuardRev uint64 // 0: GuardKey must be absent
	TTL      time.Duration
}

// Put tries once and returns the record's revision. An error wraps [ErrRefused]
// or [ErrBusy] (not applied), [ErrUnknown] (perhaps applied), or is definite.
func (b *Bucket) Put(ctx context.Context, w Write) (uint64, error) {
	before := b.highestSeen()
	rev, err := b.store(ctx, w)
	if err != nil {
		return 0, err
	}
	if err := b.accept(ctx, w.Key, rev, before); err != nil {
		return 0, fmt.Errorf("write %s: %w", w.Key, err)
	}
	return rev, nil
}

// store is Put without a look at the revision.
func (b *Bucket) store(ctx context.Context, w Write) (uint64, error) {
	msg := nats.NewMsg(b.prefix + w.Key)
	msg.Data = w.Value
	msg.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(w.GuardRev, 10)}
	if w.GuardKey != "" && w.GuardKey != w.Key {
		msg.Header["Nats-Expected-Last-Subject-Sequence-Subject"] = []string{"$KV." + b.cfg.Name + "." + w.GuardKey}
	}
	if w.TTL > 0 {
		// Whole seconds: the server truncates.
		msg.Header["Nats-TTL"] = []string{strconv.FormatInt(int64((w.TTL+time.Second-1)/time.Second), 10)}
	}
	var ack struct {
		Seq uint64 `json:"seq"`
	}
	if err := b.roundTrip(ctx, msg, &ack); err != nil {
		if definite(err) {
			return 0, fmt.Errorf("write %s: %w", w.Key, err)
		}
		if _, ok := errors.AsType[*PermissionError](err); ok {
			return 0, err
		}
		return 0, fmt.Errorf("write %s: %w", w.Key, unknown(err))
	}
	return ack.Seq, nil
}

// saw notes a revision: a bucket that this process makes anew begins above it.
func (b *Bucket) saw(rev uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.highest = max(b.highest, rev)
}

func (b *Bucket) stream() string { return streamOf(b.cfg.Name) }

func (b *Bucket) call(ctx context.Context, verb, req string, resp any) error {
	return b.roundTrip(ctx, &nats.Msg{Subject: b.api + verb, Data: []byte(req)}, resp)
}

// roundTrip sends msg to JetStream and reads the answer into resp.
func (b *Bucket) roundTrip(ctx context.Context, msg *nats.Msg, resp any) error {
	b.mu.Lock()
	limit := max(b.attempt, attempt)
	b.mu.Unlock()
	sent := time.Now()
	try, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer, err := b.nc.RequestMsgWithContext(try, msg)
	switch {
	case err == nil:
		b.setAttempt(min(4*time.Since(sent), maxAttempt))
	case try.Err() != nil && ctx.Err() == nil:
		b.setAttempt(min(2*limit, maxAttempt))
	}
	if err != nil {
		if b.cfg.Denied != nil {
			if denied := b.cfg.Denied(msg.Subject); denied != nil {
				return denied
			}
		}
		return err
	}
	return decode(answer.Data, resp)
}

func (b *Bucket) setAttempt(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attempt = d
}

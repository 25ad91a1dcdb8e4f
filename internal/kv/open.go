package kv

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// MaxRecord is the largest record, in bytes.
const MaxRecord = 512 << 10

// MaxLease is the longest lease that a record may state.
const MaxLease = 10 * time.Minute

// KeyOpen is the record that opens a bucket.
const KeyOpen = "b"

// An openRecord opens the bucket that was created at Created, and no other: a
// late write must not open the next one. One that opens nothing closes the bucket.
// Both state the longest lease that somebody knows of.
type openRecord struct {
	Key     string    `json:"key"`
	Created time.Time `json:"created"`
	LeaseMS int64     `json:"lease_ms"`
}

// Open makes the bucket if there is none, checks one that is there, and returns
// when it is open. What may pass (no leader yet, no peers yet) is retried until
// ctx ends; what will not (no JetStream, no permission, a wrong setting, a lease
// longer than the longest) is returned at once. An existing bucket is never
// changed.
func (b *Bucket) Open(ctx context.Context) error { return b.until(ctx, b.open) }

// Probe returns when the server was found to have the JetStream that a bucket
// needs, for a process that only reads and does not mind if there is no bucket.
func (b *Bucket) Probe(ctx context.Context) error { return b.until(ctx, b.checkServer) }

// until calls f until it succeeds, ctx ends, or trying again cannot help.
func (b *Bucket) until(ctx context.Context, f func(context.Context) error) error {
	for n := 0; ; n++ {
		err := f(ctx)
		if err == nil || final(err) {
			return err
		}
		b.logger.Debug("bucket not open yet", "err", err)
		if waitErr := Pause(ctx, n); waitErr != nil {
			return fmt.Errorf("open bucket %s: %w: %w", b.cfg.Name, waitErr, err)
		}
	}
}

// final reports whether trying again cannot help.
func final(err error) bool {
	if errors.Is(err, ErrNoJetStream) || errors.Is(err, ErrOldServer) {
		return true
	}
	if e, ok := errors.AsType[*apiError](err); ok {
		return e.ErrCode == codeReplicasAlone
	}
	_, permission := errors.AsType[*PermissionError](err)
	_, config := errors.AsType[*ConfigError](err)
	_, lease := errors.AsType[*LeaseError](err)
	_, foreign := errors.AsType[*ForeignError](err)
	return permission || config || lease || foreign
}

func (b *Bucket) open(ctx context.Context) error {
	info, err := b.info(ctx)
	if err != nil { // a bucket that is there and passes check needs no such proof
		if err := b.checkServer(ctx); err != nil {
			return err
		}
	}
	made := false
	if errors.Is(err, ErrNoBucket) && !b.cfg.NoCreate {
		info, err = b.create(ctx)
		made = err == nil
		if e, ok := errors.AsType[*apiError](err); ok && e.ErrCode == codeNameInUse {
			info, err = b.info(ctx)
		}
	}
	if err != nil {
		return err
	}
	if err := b.check(info.Config); err != nil {
		return err
	}
	b.mu.Lock()
	rolled := b.rolled && b.created.Equal(info.Created)
	b.mu.Unlock()
	if rolled {
		if err := b.raise(ctx); err != nil {
			return err
		}
	}
	return b.unlock(ctx, info.Created, made, rolled)
}

// checkServer asks for the account's JetStream and its API level.
func (b *Bucket) checkServer(ctx context.Context) error {
	_, err := b.Account(ctx)
	return err
}

// Account reads what the account may have of JetStream, and has.
func (b *Bucket) Account(ctx context.Context) (*jetstream.AccountInfo, error) {
	account := new(jetstream.AccountInfo)
	err := b.call(ctx, verbAccount, "", account)
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, fmt.Errorf("nobody answers %sINFO: %w", b.api, ErrNoJetStream)
	}
	if err != nil {
		return nil, err
	}
	if account.API.Level < 1 {
		return nil, fmt.Errorf("level %d: %w", account.API.Level, ErrOldServer)
	}
	return account, nil
}

// config is how the bucket is set up, and why: DESIGN.md, "The bucket".
func (b *Bucket) config(replicas int, now time.Time) jetstream.StreamConfig {
	b.mu.Lock()
	highest := b.highest
	b.mu.Unlock()
	return jetstream.StreamConfig{
		Name:              b.stream(),
		Description:       "natsfabric: members, claims and views of one fabric",
		Subjects:          []string{"$KV." + b.cfg.Name + ".>"},
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		MaxMsgsPerSubject: 1,
		MaxMsgs:           -1,
		MaxBytes:          -1,
		MaxMsgSize:        MaxRecord,
		MaxConsumers:      -1,
		Discard:           jetstream.DiscardNew,
		DenyDelete:        true,
		DenyPurge:         true,
		AllowMsgTTL:       true,
		FirstSeq:          max(uint64(now.UnixMicro()), highest+1),
		RePublish:         &jetstream.RePublish{Source: "$KV." + b.cfg.Name + ".>", Destination: b.cfg.Feed + ".>"},
	}
}

func (b *Bucket) create(ctx context.Context) (*jetstream.StreamInfo, error) {
	replicas := b.cfg.Replicas
	if replicas == 0 {
		replicas = 1
		if b.nc.ConnectedClusterName() != "" {
			replicas = 3
		}
	}
	req, err := json.Marshal(b.config(replicas, time.Now()))
	if err != nil {
		return nil, err
	}
	info := new(jetstream.StreamInfo)
	if err := b.call(ctx, verbCreate+b.stream(), string(req), info); err != nil {
		return nil, fmt.Errorf("create bucket %s with %d replicas: %w", b.cfg.Name, replicas, err)
	}
	b.logger.Info("bucket created", "bucket", b.cfg.Name, "replicas", replicas)
	return info, nil
}

// Clock reads the server's clock, for showing how old a record is.
func (b *Bucket) Clock(ctx context.Context) (time.Time, error) {
	info, err := b.info(ctx)
	if err != nil {
		return time.Time{}, err
	}
	return info.TimeStamp, nil
}

func (b *Bucket) info(ctx context.Context) (*jetstream.StreamInfo, error) {
	info := new(jetstream.StreamInfo)
	if err := b.call(ctx, verbInfo+b.stream(), "", info); err != nil {
		return nil, fmt.Errorf("bucket %s: %w", b.cfg.Name, err)
	}
	return info, nil
}

// Inspect reads the bucket's stream as it is, and how its settings differ from what
// safety depends on.
func (b *Bucket) Inspect(ctx context.Context) (*jetstream.StreamInfo, []*ConfigError, error) {
	info, err := b.info(ctx)
	if err != nil {
		return nil, nil, err
	}
	return info, b.differences(info.Config), nil
}

// check returns the first difference in what safety depends on.
func (b *Bucket) check(got jetstream.StreamConfig) error {
	if found := b.differences(got); len(found) > 0 {
		return found[0]
	}
	return nil
}

// differences compares what safety depends on.
func (b *Bucket) differences(got jetstream.StreamConfig) (found []*ConfigError) {
	want := b.config(0, time.Now())
	feed := jetstream.RePublish{}
	if got.RePublish != nil {
		feed = *got.RePublish
	}
	for _, c := range []struct {
		field     string
		want, got any
	}{
		{"storage", want.Storage, got.Storage},
		{"subjects", strings.Join(want.Subjects, " "), strings.Join(got.Subjects, " ")},
		{"sources", 0, len(got.Sources)},
		{"mirror", false, got.Mirror != nil},
		{"max_msgs_per_subject", want.MaxMsgsPerSubject, got.MaxMsgsPerSubject},
		{"max_age", want.MaxAge, got.MaxAge},
		{"max_msgs", want.MaxMsgs, got.MaxMsgs},
		{"discard", want.Discard, got.Discard},
		{"deny_delete", want.DenyDelete, got.DenyDelete},
		{"deny_purge", want.DenyPurge, got.DenyPurge},
		{"allow_rollup_hdrs", want.AllowRollup, got.AllowRollup},
		{"allow_direct", want.AllowDirect, got.AllowDirect},
		{"allow_msg_ttl", want.AllowMsgTTL, got.AllowMsgTTL},
		{"subject_delete_marker_ttl", want.SubjectDeleteMarkerTTL, got.SubjectDeleteMarkerTTL},
		{"sealed", want.Sealed, got.Sealed},
		{"no_ack", want.NoAck, got.NoAck},
		{"republish", *want.RePublish, feed},
	} {
		if c.want != c.got {
			found = append(found, &ConfigError{Bucket: b.cfg.Name, Field: c.field, Want: c.want, Got: c.got})
		}
	}
	return found
}

// unlock returns when the bucket that was created at created is open, and opens
// it when that is safe.
func (b *Bucket) unlock(ctx context.Context, created time.Time, made, rolled bool) error {
	wait := b.Longest()
	b.mu.Lock()
	newcomer := b.created.IsZero()
	b.mu.Unlock()
	ask := made || newcomer
	ask = ask || rolled
	for since := time.Now(); ; {
		connects := b.connects()
		e, err := b.Get(ctx, KeyOpen)
		if err != nil {
			return err
		}
		var r openRecord
		ours := json.Unmarshal(e.Value, &r) == nil && r.Key == KeyOpen && r.LeaseMS > 0 && r.LeaseMS <= MaxLease.Milliseconds()
		stated := time.Duration(r.LeaseMS) * time.Millisecond
		if ours && r.Created.Equal(created) {
			return b.opened(e.Rev, created, stated, connects)
		}
		if e.Value != nil && !ours {
			return &ForeignError{Key: KeyOpen}
		}
		if ask {
			// Also a newcomer that did not make it asks: that makes the nodes which are
			// connected find out, and stop, who may have a longer lease than we know of.
			ask = false
			if alone, err := b.cfg.Alone(ctx); err == nil && alone && made {
				wait = 0
			}
		}
		if !newcomer && stated < wait && !b.cfg.NoOpen {
			// A newcomer that waits as well may have a shorter lease than we know of.
			if err := b.writeOpen(ctx, e.Rev, time.Time{}); err != nil {
				return err
			}
			continue
		}
		wait = max(wait, b.heard(stated))
		if time.Since(since) >= wait && !b.cfg.NoOpen {
			if lost, err := b.replaced(ctx, created); err != nil || lost { // e may be the next bucket's
				return cmp.Or(err, ErrReplaced)
			}
			if err := b.writeOpen(ctx, e.Rev, created); err != nil {
				return err
			}
			continue
		}
		if err := Pause(ctx, 3); err != nil {
			return fmt.Errorf("the bucket is new and closed for %v: %w", wait, err)
		}
	}
}

// heard notes a lease that a closed record states, and returns it: who opens the bucket
// states it again, or shuts out the members that have it.
func (b *Bucket) heard(lease time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.longest = max(b.longest, lease)
	return lease
}

// writeOpen opens the bucket that was created at created, or closes it if that is zero.
func (b *Bucket) writeOpen(ctx context.Context, rev uint64, created time.Time) error {
	value, err := b.openRecord(created)
	if err != nil {
		return err
	}
	_, err = b.Put(ctx, Write{Key: KeyOpen, Value: value, GuardRev: rev})
	if errors.Is(err, ErrRefused) {
		return nil // somebody was first; the next read shows who
	}
	return err
}

// openRecord is the record for the bucket that was created at created, with the longest
// lease known.
func (b *Bucket) openRecord(created time.Time) ([]byte, error) {
	longest := b.Longest() + time.Millisecond - 1
	return json.Marshal(openRecord{Key: KeyOpen, Created: created, LeaseMS: max(1, longest.Milliseconds())})
}

func (b *Bucket) opened(rev uint64, created time.Time, longest time.Duration, connects uint64) error {
	if b.cfg.Lease > longest {
		return &LeaseError{Lease: b.cfg.Lease, Longest: longest}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.created, b.longest = created, longest
	b.openRev, b.rolled, b.suspect, b.looked = rev, false, false, connects
	return nil
}

//go:build linux

package peers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A plainCandidate campaigns as libraries on plain KV buckets do: it creates a key that
// the bucket forgets after ttl, and updates it at its revision, every three quarters of
// ttl, as ripienaar/nats-kv-leader-elect does. Unlike that one it also watches the key,
// and so learns of its end at once: from the delete, or the marker that the server
// leaves, if ttl is at least the second that markers need.
type plainCandidate struct {
	nc    *nats.Conn
	kv    jetstream.KeyValue
	key   string
	id    string
	every time.Duration

	waits atomic.Bool        // another has the key
	stop  context.CancelFunc // of the renewals
	done  chan struct{}
}

func standPlain(ctx context.Context, url, name, id string, ttl time.Duration) (candidate, error) {
	nc, err := connect(url)
	if err != nil {
		return nil, err
	}
	bucket, err := plainBucket(ctx, nc, ttl)
	if err != nil {
		return nil, err
	}
	return newPlainCandidate(nc, bucket, name, id, ttl), nil
}

func newPlainCandidate(nc *nats.Conn, bucket jetstream.KeyValue, name, id string, ttl time.Duration) *plainCandidate {
	return &plainCandidate{nc: nc, kv: bucket, key: name, id: id, every: ttl * 3 / 4}
}

func plainBucket(ctx context.Context, nc *nats.Conn, ttl time.Duration) (jetstream.KeyValue, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	cfg := jetstream.KeyValueConfig{Bucket: "plain", TTL: ttl, Storage: jetstream.FileStorage}
	if ttl >= time.Second {
		cfg.LimitMarkerTTL = time.Second
	}
	return js.CreateOrUpdateKeyValue(ctx, cfg)
}

func (c *plainCandidate) campaign(ctx context.Context) error {
	w, err := c.kv.Watch(ctx, c.key, jetstream.MetaOnly())
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	defer w.Stop() // fails on a closed connection only
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for {
		rev, err := c.kv.Create(ctx, c.key, []byte(c.id))
		if err == nil {
			c.waits.Store(false)
			c.lead(ctx, rev)
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) {
			return fmt.Errorf("create: %w", err)
		}
		c.waits.Store(true)
		for held := true; held; {
			select {
			case e := <-w.Updates():
				held = e == nil || e.Operation() == jetstream.KeyValuePut
			case <-tick.C:
				held = false
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// lead renews in the background, until resign or leave.
func (c *plainCandidate) lead(ctx context.Context, rev uint64) {
	c.done = make(chan struct{})
	ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(c.done)
		tick := time.NewTicker(c.every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			var err error
			if rev, err = c.kv.Update(ctx, c.key, []byte(c.id), rev); err != nil {
				return // it leads no more
			}
		}
	}()
}

func (c *plainCandidate) standing(ctx context.Context) error {
	if err := until(ctx, func() (bool, error) { return c.waits.Load(), nil }); err != nil {
		return err
	}
	return settle(ctx)
}

func (c *plainCandidate) resign(ctx context.Context) error {
	c.stop()
	<-c.done
	return c.kv.Delete(ctx, c.key)
}

func (c *plainCandidate) leave(context.Context) error {
	c.nc.Close()
	return nil
}

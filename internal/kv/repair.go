package kv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// repairPoll is how often the copies are looked at.
const repairPoll = 100 * time.Millisecond

// Repair gives the bucket the settings that check wants, and replicas copies if that
// is not 0, and waits until all copies are current. It returns the differences that
// it found; with dry it changes nothing. Settings that are not the fabric's business
// stay as they are.
func (b *Bucket) Repair(ctx context.Context, replicas int, dry bool) ([]*ConfigError, error) {
	if err := b.checkServer(ctx); err != nil {
		return nil, err
	}
	info, err := b.info(ctx)
	if err != nil {
		return nil, err
	}
	found := b.differences(info.Config)
	if replicas != 0 && info.Config.Replicas != replicas {
		found = append(found, &ConfigError{b.cfg.Name, "num_replicas", replicas, info.Config.Replicas})
	}
	if dry {
		return found, nil
	}
	if len(found) > 0 {
		if err := b.update(ctx, replicas, found); err != nil {
			return found, err
		}
	}
	return found, b.awaitCopies(ctx) // also of a Repair before this one
}

// update sends the existing configuration with the fabric's setting in each field that
// was found to differ. It works on the text, so that settings which this version does not
// know stay.
func (b *Bucket) update(ctx context.Context, replicas int, found []*ConfigError) error {
	var have struct {
		Config map[string]json.RawMessage `json:"config"`
	}
	if err := b.call(ctx, verbInfo+b.stream(), "", &have); err != nil {
		return fmt.Errorf("bucket %s: %w", b.cfg.Name, err)
	}
	want, err := json.Marshal(b.config(replicas, time.Now()))
	if err != nil {
		return err
	}
	var set map[string]json.RawMessage
	if err := json.Unmarshal(want, &set); err != nil {
		return err
	}
	for _, c := range found {
		if value, ok := set[c.Field]; ok {
			have.Config[c.Field] = value
		} else {
			delete(have.Config, c.Field) // absent is off
		}
	}
	req, err := json.Marshal(have.Config)
	if err != nil {
		return err
	}
	var answer jetstream.StreamInfo
	if err := b.call(ctx, verbUpdate+b.stream(), string(req), &answer); err != nil {
		return fmt.Errorf("update bucket %s: %w", b.cfg.Name, err)
	}
	return b.check(answer.Config)
}

// awaitCopies waits until every copy has what the leader has.
func (b *Bucket) awaitCopies(ctx context.Context) error {
	tick := time.NewTicker(repairPoll)
	defer tick.Stop()
	for {
		info, err := b.info(ctx)
		if err == nil {
			current, want := 1, info.Config.Replicas
			if info.Cluster != nil {
				for _, r := range info.Cluster.Replicas {
					if r.Current && !r.Offline {
						current++
					}
				}
			}
			if current >= want {
				return nil
			}
			err = fmt.Errorf("%d of %d copies are current", current, want)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("bucket %s: %w", b.cfg.Name, errors.Join(context.Cause(ctx), err))
		}
	}
}

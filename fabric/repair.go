package fabric

import (
	"context"
	"fmt"
)

// A BucketChange is one setting of the bucket that Repair changes.
type BucketChange struct {
	Field     string
	Want, Got any
}

func (c BucketChange) String() string { return fmt.Sprintf("%s: %v -> %v", c.Field, c.Got, c.Want) }

// Repair gives the bucket of the fabric the settings that a fabric needs, and
// replicas copies; 0 leaves their number as it is. Members may be running: what is
// held stays held. With dry it only says what it would change. It returns when all
// copies have everything, or with an error that wraps ctx's and the changes that were
// made. A setting that a server refuses to change on an existing bucket (its storage,
// for example) is an error that wraps [ErrBucket].
//
// Of cfg it uses what Join would use to connect. The user needs the permission to
// update the stream, which members do not.
func Repair(ctx context.Context, cfg Config, replicas int, dry bool) ([]BucketChange, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if replicas < 0 || replicas > 5 {
		return nil, &ConfigError{"Replicas", fmt.Sprintf("%d is not within 1 and 5", replicas)}
	}
	if cfg.Control != nil {
		cfg.NATS = cfg.Control // the bucket's connection is enough
	}
	l, err := dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer l.close()
	control, err := dialControl(ctx, cfg, l)
	if err != nil {
		return nil, err
	}
	if control != l {
		defer control.close()
	}
	bucket := bucketOf(control, cfg, newSubjects(cfg.Cluster, cfg.Env, cfg.PID), nil)
	found, err := bucket.Repair(ctx, replicas, dry)
	var changes []BucketChange
	for _, c := range found {
		changes = append(changes, BucketChange{c.Field, c.Want, c.Got})
	}
	if err != nil {
		return changes, fmt.Errorf("repair %s/%s: %w", cfg.Cluster, cfg.Env, explain(err))
	}
	return changes, nil
}

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

// reach connects to the bucket, without a connection for messages.
func reach(ctx context.Context, cfg Config) (*link, error) {
	if cfg.Control != nil {
		cfg.NATS, cfg.Control = cfg.Control, nil
	}
	return dial(ctx, cfg)
}

// CreateMailboxes makes the mail streams and the mailboxes of pids, as far as they are
// not there, for processes that may not: of the roles only [RoleAdmin] may, since who
// makes a mailbox says where it delivers. It is an administrator's task, to be done
// before such a process joins with a [Mailbox]; what is sent to it waits from then on.
//
// Of cfg it uses what Join would use to connect, Lease, and Mailbox for what their
// creator decides. Some may have been made when it returns an error; calling it again
// does no harm.
func CreateMailboxes(ctx context.Context, cfg Config, pids ...PID) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := CheckPID(pid); err != nil {
			return err
		}
	}
	l, err := reach(ctx, cfg)
	if err != nil {
		return err
	}
	defer l.close()
	office := newOffice(cfg, l, newSubjects(cfg.Cluster, cfg.Env, cfg.PID))
	err = office.Open(ctx, true)
	for i := 0; i < len(pids) && err == nil; i++ {
		box := boxOf(newSubjects(cfg.Cluster, cfg.Env, pids[i]), cfg.Mailbox, cfg.Lease)
		err = office.Provide(ctx, box)
	}
	if err != nil {
		return fmt.Errorf("mailboxes of %s/%s: %w", cfg.Cluster, cfg.Env, explain(err))
	}
	return nil
}

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
	l, err := reach(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer l.close()
	bucket := bucketOf(l, cfg, newSubjects(cfg.Cluster, cfg.Env, cfg.PID), nil)
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

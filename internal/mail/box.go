package mail

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// boxPrefix begins the names of the consumers that are mailboxes.
const boxPrefix = "mb-"

// A Box says how a process fetches its mail.
type Box struct {
	PID      string
	Subjects string        // of messages to it: P.d.<pid>.*
	AckWait  time.Duration // without a sign of life, a message is delivered again
	InFlight int           // delivered and not acknowledged, at most
	Idle     time.Duration // without its process, the mailbox is given up
}

// Name is the consumer's.
func (b Box) Name() string { return boxPrefix + b.PID }

func (b Box) config() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:           b.Name(),
		Description:       "natsfabric: mailbox of " + b.PID,
		FilterSubject:     b.Subjects,
		DeliverPolicy:     jetstream.DeliverAllPolicy,
		AckPolicy:         jetstream.AckExplicitPolicy,
		AckWait:           b.AckWait,
		MaxAckPending:     b.InFlight,
		MaxDeliver:        -1,
		InactiveThreshold: b.Idle,
	}
}

// Provide makes b, and leaves one that is there as it is: its process may be up, and goes
// by the patience that it found.
func (o *Office) Provide(ctx context.Context, b Box) error {
	err := o.until(ctx, func(ctx context.Context) error {
		_, err := o.js.CreateConsumer(ctx, o.mailName(), b.config())
		if errors.Is(err, jetstream.ErrConsumerExists) {
			return nil
		}
		return o.denied("CONSUMER.CREATE."+o.mailName()+"."+b.Name()+"."+b.Subjects, err)
	})
	if err != nil {
		return fmt.Errorf("mailbox %s: %w", b.Name(), err)
	}
	return nil
}

// Mailbox makes the process's mailbox, or finds the one it had, and returns it with
// its state. There is no limit to deliveries: who fetches counts them. If create is
// false, the mailbox must be there, and is an error that wraps [ErrNoStream] otherwise.
func (o *Office) Mailbox(ctx context.Context, b Box, create bool) (jetstream.Consumer, error) {
	cfg := b.config()
	var cons jetstream.Consumer
	err := o.until(ctx, func(ctx context.Context) (err error) {
		if !create {
			cons, err = o.js.Consumer(ctx, o.mailName(), b.Name())
			if errors.Is(err, jetstream.ErrConsumerNotFound) {
				return fmt.Errorf("%w: %w", ErrNoStream, err)
			}
			if err == nil {
				err = o.checkBox(cfg, cons.CachedInfo().Config)
			}
			return o.denied("CONSUMER.INFO."+o.mailName()+"."+b.Name(), err)
		}
		cons, err = o.js.CreateOrUpdateConsumer(ctx, o.mailName(), cfg)
		return o.denied("CONSUMER.CREATE."+o.mailName()+"."+b.Name()+"."+b.Subjects, err)
	})
	if err != nil {
		return nil, fmt.Errorf("mailbox %s: %w", b.Name(), err)
	}
	return cons, nil
}

// checkBox compares what the promises depend on with a mailbox that somebody made.
func (o *Office) checkBox(want, got jetstream.ConsumerConfig) error {
	for _, c := range []struct {
		field     string
		want, got any
	}{
		{"filter_subject", want.FilterSubject, got.FilterSubject},
		{"ack_policy", want.AckPolicy, got.AckPolicy},
		{"deliver_policy", want.DeliverPolicy, got.DeliverPolicy},
		{"max_deliver", want.MaxDeliver, got.MaxDeliver},
		{"deliver_subject", want.DeliverSubject, got.DeliverSubject},
	} {
		if c.want != c.got {
			return &ConfigError{Stream: o.mailName() + " consumer " + want.Durable, Field: c.field, Want: c.want, Got: c.got}
		}
	}
	return nil
}

// Delivered reports whether a message that a consumer delivered is from the box b in
// the mail stream, as its address for acknowledgements says.
func (o *Office) Delivered(m *jetstream.MsgMetadata, b Box) bool {
	return m.Stream == o.mailName() && m.Consumer == b.Name()
}

// Owners returns the PIDs that have a mailbox, their processes being up or not.
func (o *Office) Owners(ctx context.Context) ([]string, error) {
	mail, _, err := o.streams()
	if err != nil {
		return nil, err
	}
	var pids []string
	names := mail.ConsumerNames(ctx) // asks for one page after the other
	for name := range names.Name() {
		if pid, ok := strings.CutPrefix(name, boxPrefix); ok {
			pids = append(pids, pid)
		}
	}
	if err := o.denied("CONSUMER.NAMES."+o.mailName(), names.Err()); err != nil {
		return nil, fmt.Errorf("list mailboxes: %w", category(err))
	}
	return pids, nil
}

// Waiting returns how many messages lie in the mail stream, by subject.
func (o *Office) Waiting(ctx context.Context) (map[string]uint64, error) {
	mail, _, err := o.streams()
	if err != nil {
		return nil, err
	}
	info, err := mail.Info(ctx, jetstream.WithSubjectFilter(o.cfg.Mail))
	if err := o.denied("STREAM.INFO."+o.mailName(), err); err != nil {
		return nil, fmt.Errorf("count mail: %w", category(err))
	}
	return info.State.Subjects, nil
}

// Dead returns the first dead letter with at least the sequence seq, nil if there is
// none.
func (o *Office) Dead(ctx context.Context, seq uint64) (*jetstream.RawStreamMsg, error) {
	_, dead, err := o.streams()
	if err != nil {
		return nil, err
	}
	m, err := dead.GetMsg(ctx, max(seq, 1), jetstream.WithGetMsgSubject(o.cfg.Dead))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err := o.denied("STREAM.MSG.GET."+o.deadName(), err); err != nil {
		return nil, fmt.Errorf("read dead letters: %w", category(err))
	}
	return m, nil
}

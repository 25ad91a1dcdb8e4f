package mail

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// Window is how long the server knows the id of a stored message, and refuses to
// store another under it, unless messages are kept for less. [MinWindow] is the least that an existing stream must have.
const (
	Window    = 2 * time.Minute
	MinWindow = time.Minute
)

// DeadAge is how long a dead letter is kept, and DeadBytes how many bytes of them.
const (
	DeadAge   = 30 * 24 * time.Hour
	DeadBytes = 64 << 20
)

// Config says which streams, and what the creator of them decides.
type Config struct {
	Name     string // fab_<cluster>_<env>
	Mail     string // every subject of messages: P.d.*.*
	Dead     string // every subject of dead letters
	Domain   string // JetStream domain, or empty
	Replicas int    // when created; 0 = 3 on a cluster, else 1

	Quota int           // messages of one sender to one receiver, when created
	Bytes int64         // of all messages, when created
	Age   time.Duration // of a message, when created; at least MinWindow

	// Denied returns the permission violation that the server reported for a
	// publish to subject, if it did.
	Denied func(subject string) error
	Logger *slog.Logger
}

// An Office is a handle to a fabric's mail; it may exist before the streams do.
type Office struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	cfg Config
	api string // begins the subjects of the API

	mu         sync.Mutex // guards the fields below
	mail, dead jetstream.Stream
}

// New returns a handle. It does no I/O.
func New(nc *nats.Conn, cfg Config) *Office {
	o := &Office{nc: nc, cfg: cfg, api: kv.API(cfg.Domain)}
	var err error
	if cfg.Domain == "" {
		o.js, err = jetstream.New(nc)
	} else {
		o.js, err = jetstream.NewWithDomain(nc, cfg.Domain)
	}
	if err != nil {
		panic(err) // only an empty domain is refused
	}
	return o
}

// Conn is the connection that the handle uses.
func (o *Office) Conn() *nats.Conn { return o.nc }

func (o *Office) mailName() string { return o.cfg.Name + "_mail" }
func (o *Office) deadName() string { return o.cfg.Name + "_dead" }

// Open returns when both streams are there and as they must be. If create is false,
// a stream that is missing is an error that wraps [ErrNoStream].
func (o *Office) Open(ctx context.Context, create bool) error {
	return o.until(ctx, func(ctx context.Context) error {
		mail, err := o.open(ctx, o.mailConfig(), create)
		if err != nil {
			return err
		}
		dead, err := o.open(ctx, o.deadConfig(), create)
		if err != nil {
			return err
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.mail, o.dead = mail, dead
		return nil
	})
}

// streams returns the handles, or an error if Open has not succeeded.
func (o *Office) streams() (mail, dead jetstream.Stream, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mail == nil {
		return nil, nil, ErrNoStream
	}
	return o.mail, o.dead, nil
}

// A round trip is given up after this, and after twice as long the next time.
const (
	attempt    = 2 * time.Second
	maxAttempt = 8 * time.Second
)

// until calls f until it succeeds, ctx ends, or trying again cannot help.
func (o *Office) until(ctx context.Context, f func(context.Context) error) error {
	for n := 0; ; n++ {
		try, cancel := context.WithTimeout(ctx, min(attempt<<min(n, 2), maxAttempt))
		err := category(f(try))
		cancel()
		if err == nil || final(err) {
			return err
		}
		o.cfg.Logger.Debug("mail not reached yet", "err", err)
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return fmt.Errorf("%w: %w", waitErr, err)
		}
	}
}

// denied returns the violation that explains why a call to an API subject failed, or
// err.
func (o *Office) denied(verb string, err error) error {
	if err != nil && o.cfg.Denied != nil {
		if d := o.cfg.Denied(o.api + verb); d != nil {
			return d
		}
	}
	return err
}

// errUnseen: another process has just made the stream, on another server of a cluster.
var errUnseen = errors.New("it is there and not found yet")

func (o *Office) open(ctx context.Context, cfg jetstream.StreamConfig, create bool) (jetstream.Stream, error) {
	st, err := o.js.Stream(ctx, cfg.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) && create {
		st, err = o.js.CreateStream(ctx, cfg)
		if err == nil {
			o.cfg.Logger.Info("stream created", "stream", cfg.Name, "replicas", cfg.Replicas)
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // somebody was first
			st, err = o.js.Stream(ctx, cfg.Name)
		}
		err = o.denied("STREAM.CREATE."+cfg.Name, err)
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) && create {
		err = errUnseen
	}
	if err = o.denied("STREAM.INFO."+cfg.Name, err); err != nil {
		return nil, fmt.Errorf("stream %s: %w", cfg.Name, err)
	}
	return st, check(cfg, st.CachedInfo().Config)
}

func (o *Office) replicas() int {
	switch {
	case o.cfg.Replicas != 0:
		return o.cfg.Replicas
	case o.nc.ConnectedClusterName() != "":
		return 3
	}
	return 1
}

// mailConfig is how the mail stream is set up. WorkQueue: with Interest, a message to
// a process without a mailbox would be acknowledged and dropped. DiscardNew, for each
// subject as well: the sender is told, and no sender takes another's room. The first
// sequence is the time, so that no number of a lost stream returns.
func (o *Office) mailConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:                 o.mailName(),
		Description:          "natsfabric: messages of Mode Durable that wait for their receivers",
		Subjects:             []string{o.cfg.Mail},
		Retention:            jetstream.WorkQueuePolicy,
		Storage:              jetstream.FileStorage,
		Replicas:             o.replicas(),
		MaxMsgs:              -1,
		MaxBytes:             o.cfg.Bytes,
		MaxAge:               o.cfg.Age,
		MaxMsgsPerSubject:    int64(o.cfg.Quota),
		MaxMsgSize:           -1,
		MaxConsumers:         -1,
		Discard:              jetstream.DiscardNew,
		DiscardNewPerSubject: true,
		Duplicates:           min(Window, o.cfg.Age), // the server takes no more
		AllowMsgTTL:          true,
		FirstSeq:             uint64(time.Now().UnixMicro()),
	}
}

// deadConfig is how the stream of dead letters is set up. When it is full, a letter
// stays in its mailbox.
func (o *Office) deadConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              o.deadName(),
		Description:       "natsfabric: messages of Mode Durable that no receiver could handle",
		Subjects:          []string{o.cfg.Dead},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Replicas:          o.replicas(),
		MaxMsgs:           -1,
		MaxBytes:          DeadBytes,
		MaxAge:            DeadAge,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        -1,
		MaxConsumers:      -1,
		Discard:           jetstream.DiscardNew,
		Duplicates:        Window,
		FirstSeq:          uint64(time.Now().UnixMicro()),
	}
}

// check compares what the promises depend on. Replicas and limits are the creator's
// and the operator's affair; a limit per subject there must be.
func check(want, got jetstream.StreamConfig) error {
	for _, c := range []struct {
		field     string
		want, got any
	}{
		{"subjects", strings.Join(want.Subjects, " "), strings.Join(got.Subjects, " ")},
		{"retention", want.Retention, got.Retention},
		{"storage", want.Storage, got.Storage},
		{"discard", want.Discard, got.Discard},
		{"discard_new_per_subject", want.DiscardNewPerSubject, got.DiscardNewPerSubject},
		{"sources", 0, len(got.Sources)},
		{"mirror", false, got.Mirror != nil},
		{"subject_transform", false, got.SubjectTransform != nil},
		{"republish", false, got.RePublish != nil},
		{"allow_rollup_hdrs", want.AllowRollup, got.AllowRollup},
		{"sealed", want.Sealed, got.Sealed},
		{"no_ack", want.NoAck, got.NoAck},
	} {
		if c.want != c.got {
			return &ConfigError{Stream: want.Name, Field: c.field, Want: c.want, Got: c.got}
		}
	}
	if want.MaxMsgsPerSubject > 0 && got.MaxMsgsPerSubject <= 0 {
		return &ConfigError{Stream: want.Name, Field: "max_msgs_per_subject", Want: "a limit", Got: got.MaxMsgsPerSubject}
	}
	if got.Duplicates < MinWindow {
		return &ConfigError{Stream: want.Name, Field: "duplicate_window", Want: "at least " + MinWindow.String(), Got: got.Duplicates}
	}
	return nil
}

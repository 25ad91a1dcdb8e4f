package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/mail"
	"github.com/natsfabric/natsfabric/internal/roster"
)

const (
	// signalOpen is the signal kind that every node with a session subscribes to: a
	// request on it finds out whether any is connected, and makes those renew at
	// once, because the bucket is new: they may have a longer lease than who asks.
	signalOpen = "open"
	// signalProbe is one that nobody subscribes to; publishing it shows whether the
	// server's permissions allow signals. One that everyone hears would cost a
	// thousand nodes that join a million deliveries, and the server's index of
	// subscriptions far more.
	signalProbe = "probe"
)

// Join joins the fabric and returns once the node holds its PID, receives what is
// sent to it, and is a member in its own view. The caller must call Leave when
// done.
//
// A PID whose holder lives is a [*PIDInUseError], on the first renewal seen; one
// whose holder left is taken at once; one whose holder died, when its lease has
// run out. No JetStream, too old a server, a missing permission and a bucket that
// is not the fabric's are errors at once; a server that cannot be reached is
// tried again until ctx ends, and the error then wraps [ErrConnect] and ctx's.
func Join(ctx context.Context, cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	l, err := dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	control, err := dialControl(ctx, cfg, l)
	if err != nil {
		l.close()
		return nil, err
	}
	warnOld(l.nc, cfg.Logger)
	n := newNode(ctx, cfg, l, control)
	if err := n.join(ctx); err != nil {
		n.abort(err)
		return nil, fmt.Errorf("join %s/%s as %s: %w", cfg.Cluster, cfg.Env, cfg.PID, explain(err))
	}
	n.begin()
	return n, nil
}

func newNode(ctx context.Context, cfg Config, l, control *link) *Node {
	n := &Node{cfg: cfg, link: l, control: control, subjects: newSubjects(cfg.Cluster, cfg.Env, cfg.PID), left: make(chan struct{})}
	l.prefix, control.prefix = n.subjects.prefix, n.subjects.prefix
	n.ctx, n.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	n.office = newOffice(cfg, control, n.subjects)
	n.bucket = bucketOf(control, cfg, n.subjects, n.alone)
	return n
}

// bucketOf is the fabric's bucket over a connection.
func bucketOf(l *link, cfg Config, s subjects, alone func(context.Context) (bool, error)) *kv.Bucket {
	return kv.New(l.nc, kv.Config{
		Name: kv.Name(cfg.Cluster, cfg.Env), Feed: s.feed(), Domain: cfg.Domain,
		Replicas: cfg.Replicas, Lease: cfg.Lease, Alone: alone, Denied: l.refused, Logger: cfg.Logger,
		NoCreate: cfg.Role < RoleAdmin, NoOpen: cfg.Role < RoleCandidate,
	})
}

// join: subscribe, flush, then write the session and see it back, then read the
// rest. So whoever is seen as a member receives.
func (n *Node) join(ctx context.Context) (err error) {
	open := n.bucket.Open
	if n.cfg.Passive {
		open = n.bucket.Probe // creates nothing
	}
	if err := open(ctx); err != nil {
		return err
	}
	if err := n.subscribe(ctx); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	n.session, err = lease.Start(ctx, n.bucket, lease.Config{
		PID: string(n.cfg.PID), Host: host, Lease: n.cfg.Lease, Meta: n.cfg.Meta,
		Passive: n.cfg.Passive, OwnOnly: n.cfg.Role < RoleCandidate, Logger: n.cfg.Logger,
	})
	if err != nil {
		return err
	}
	n.holder.Store(n.session)
	if err := n.watchSystem(); err != nil {
		return err
	}
	rc := roster.Config{
		Name: lease.RosterMembers, Session: n.session, Signals: signals{n.courier},
		Quiet: roster.DefaultQuiet, Ceiling: roster.DefaultCeiling, Logger: n.cfg.Logger,
	}
	if !n.cfg.Passive {
		survey := roster.Survey{Session: n.session, Foreign: n.foreign, Logger: n.cfg.Logger}
		if !n.cfg.LeaseOnly {
			survey.Evidence, survey.Probe = n.evidence, n.present
		}
		rc.Census = roster.Living(survey)
	}
	if n.members, err = roster.Start(ctx, rc); err != nil {
		return err
	}
	n.roster.Store(n.members)
	if err := n.awaitSelf(ctx); err != nil {
		return err
	}
	if err := n.courier.mail.begin(ctx); err != nil {
		return err
	}
	// A subscription to the feed or to the signals.
	return cmp.Or(n.link.anyRefused(), n.control.anyRefused())
}

// subscribe takes the node's subjects and waits until the server has them.
func (n *Node) subscribe(ctx context.Context) (err error) {
	var g *gate
	if n.link.owned {
		g = &n.link.gate
	}
	n.courier, err = newCourier(courierConfig{
		nc: n.link.nc, gate: g, subjects: n.subjects, pid: n.cfg.PID, passive: n.cfg.Passive, inbox: n.cfg.Inbox,
		mode: n.cfg.Mode, noBatch: n.cfg.NoBatch, offline: n.cfg.Offline,
		others: n.others, members: n.peers, refused: n.link.denies,
		mail: n.office, mailbox: n.cfg.Mailbox, ackWait: n.cfg.Lease, fixedMail: n.cfg.Role < RoleAdmin,
		logger: n.cfg.Logger, onUndeliverable: n.cfg.OnUndeliverable, known: n.knows, unheard: n.unheard, lifeOf: n.lifeOf, gone: n.gone,
	})
	if err != nil {
		return err
	}
	n.evidence = roster.NewEvidence(signals{n.courier}, n.cfg.Logger)
	if !n.cfg.Passive {
		if n.opens, err = n.link.nc.Subscribe(n.subjects.signalAll(signalOpen), n.opened); err != nil {
			return err
		}
	}
	if n.cfg.Micro {
		if err := n.registerMicro(); err != nil {
			return err
		}
	}
	if err := n.courier.signal(signalProbe, nil); err != nil { // shows a missing permission to publish
		return err
	}
	for try := 0; ; try++ {
		flush, cancel := context.WithTimeout(ctx, time.Second)
		err := n.link.nc.FlushWithContext(flush)
		cancel()
		if err == nil {
			return n.link.anyRefused()
		}
		if waitErr := kv.Pause(ctx, try); waitErr != nil {
			return fmt.Errorf("subscribe: %w: %w", waitErr, err)
		}
	}
}

// awaitSelf waits until the view has this node's incarnation. A passive node has
// its view at once.
func (n *Node) awaitSelf(ctx context.Context) error {
	if n.cfg.Passive {
		return n.members.Sync(ctx)
	}
	err := n.members.Await(ctx, func(v *roster.View) (bool, <-chan struct{}, error) {
		st, changed := n.session.State()
		if st.Ended {
			return false, nil, st.Err
		}
		// The lease may lapse and resume while we wait, and no view shows that.
		m, ok := v.Find(string(n.cfg.PID))
		return ok && st.Hold != nil && m.Inc == st.Hold.Incarnation, changed, nil
	})
	if v, _ := n.members.View(); err != nil && v.Full() {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// opened is called when some process finds the bucket new, and asks.
func (n *Node) opened(m *nats.Msg) {
	if s := n.holder.Load(); s != nil && m.Reply != "" {
		n.bucket.Suspect()
		s.Poke()
	}
}

// alone reports whether no node with a session is connected anywhere: nobody has
// the signal subscribed. This node subscribes only after the bucket is open.
func (n *Node) alone(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := n.link.nc.RequestWithContext(ctx, n.subjects.signal(signalOpen), nil)
	if errors.Is(err, nats.ErrNoResponders) {
		return true, nil
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return false, nil // somebody has it and, as always, does not answer
	}
	return false, err
}

// explain turns an internal error into the public one.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*lease.HeldError](err); ok {
		return &PIDInUseError{PID: PID(e.PID), Host: e.Host, Since: e.Since}
	}
	if e, ok := errors.AsType[*PermissionError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*kv.LeaseError](err); ok {
		return &ConfigError{"Lease", fmt.Sprintf("%v is longer than %v, which the fabric's first member fixed as its longest", e.Lease, e.Longest)}
	}
	if e, ok := errors.AsType[*mail.ConfigError](err); ok {
		return &StreamError{Stream: e.Stream, Field: e.Field, Want: e.Want, Got: e.Got}
	}
	_, config := errors.AsType[*kv.ConfigError](err)
	_, foreign := errors.AsType[*lease.ForeignError](err)
	switch {
	case config, foreign:
		return fmt.Errorf("%w: %w", ErrBucket, err)
	case errors.Is(err, mail.ErrNoStream):
		return fmt.Errorf("%w: %w", ErrNoMail, err)
	case errors.Is(err, kv.ErrNoJetStream):
		return fmt.Errorf("%w: %w", ErrNoJetStream, err)
	case errors.Is(err, kv.ErrOldServer):
		return fmt.Errorf("%w: %w", ErrOldServer, err)
	case errors.Is(err, lease.ErrLeft):
		return ErrClosed
	case errors.Is(err, lease.ErrPassive):
		return ErrPassive
	case errors.Is(err, lease.ErrLost):
		return lost(err)
	}
	return err
}

// lost says ErrLost once, and then the reason if there is one.
func lost(err error) error {
	text := err.Error()
	for prefix := lease.ErrLost.Error(); strings.HasPrefix(text, prefix); {
		text = strings.TrimPrefix(strings.TrimPrefix(text, prefix), ": ")
	}
	if text == "" {
		return ErrLost
	}
	return fmt.Errorf("%w: %s", ErrLost, text)
}

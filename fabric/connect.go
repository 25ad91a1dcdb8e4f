package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// A link is a node's connection: dialled and owned, or borrowed.
type link struct {
	nc    *nats.Conn
	owned bool

	gate gate // of nc, if owned

	mu     sync.Mutex        // guards the fields below
	denied map[string]denial // by subject; at most maxDenied
	first  *PermissionError  // the first of them, ever
	// onError is told of slow consumers and permission violations.
	onError func(err error, sub *nats.Subscription)
	stale   error  // the connection's last one that was noticed, or is from before us
	prefix  string // of the fabric's subjects
}

// A denial is a permission violation that the server reported.
type denial struct {
	op string
	at time.Time
}

// denialHolds is how long a denial explains a missing answer. It is reported again
// each time, and permissions may be changed while the server runs.
const denialHolds = 5 * time.Second

// maxDenied bounds the denials that are kept: others may cause one with each address at
// which they want to be answered.
const maxDenied = 1024

// deny notes a denial. It needs l.mu.
func (l *link) deny(op, subject string) {
	if l.first == nil {
		l.first = &PermissionError{Op: op, Subject: subject}
	}
	if len(l.denied) >= maxDenied {
		maps.DeleteFunc(l.denied, func(_ string, d denial) bool { return time.Since(d.at) >= denialHolds })
	}
	for old := range l.denied {
		if len(l.denied) < maxDenied {
			break
		}
		delete(l.denied, old)
	}
	l.denied[subject] = denial{op, time.Now()}
}

// dial connects, and tries again until ctx ends: a process may come up before its
// server does.
func dial(ctx context.Context, cfg Config) (*link, error) {
	l := &link{denied: map[string]denial{}}
	if cfg.Conn != nil {
		l.nc = cfg.Conn
		l.stale = l.nc.LastError()
		if l.nc.IsClosed() {
			return nil, fmt.Errorf("%w: Config.Conn is closed", ErrConnClosed)
		}
		return l, nil
	}
	l.owned = true
	for n := 0; ; n++ {
		nc, err := nats.Connect(cfg.URL, l.options(ctx, cfg)...)
		if err == nil {
			l.nc = nc
			l.gate.nc.Store(nc)
			return l, nil
		}
		if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrSecureConnWanted) {
			return nil, fmt.Errorf("%w: %w", ErrConnect, err)
		}
		cfg.Logger.Debug("no server yet", "err", err)
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return nil, fmt.Errorf("%w: %w: %w", ErrConnect, waitErr, err)
		}
	}
}

// dialControl makes the second connection, if the bucket has one of its own.
func dialControl(ctx context.Context, cfg Config, messages *link) (*link, error) {
	if cfg.Control == nil {
		return messages, nil
	}
	cfg.NATS = cfg.Control
	return dial(ctx, cfg)
}

// options are the node's own, then the caller's, then the handlers that call both.
func (l *link) options(ctx context.Context, cfg Config) []nats.Option {
	l.gate.ping = min(max(cfg.Lease/4, 250*time.Millisecond), 10*time.Second)
	opts := []nats.Option{
		nats.Name(connNamePrefix(cfg.Cluster, cfg.Env) + string(cfg.PID)),
		nats.MaxReconnects(-1),
		nats.ReconnectBufSize(-1), // nothing is sent late: a send fails, or it is out
		nats.ReconnectWait(250 * time.Millisecond),
		nats.PingInterval(pingEvery * l.gate.ping),
		nats.MaxPingsOutstanding(2),
		nats.Timeout(connectTimeout(ctx)),
		nats.CustomInboxPrefix(newSubjects(cfg.Cluster, cfg.Env, cfg.PID).inbox()),
		nats.IgnoreAuthErrorAbort(),
		nats.SkipSubjectValidation(), // every subject is built from checked names
	}
	opts = append(opts, cfg.NATS...)
	return append(opts, func(o *nats.Options) error {
		l.gate.install(o)
		users := o.AsyncErrorCB
		o.AsyncErrorCB = func(nc *nats.Conn, sub *nats.Subscription, err error) {
			l.asyncError(sub, err)
			if users != nil {
				users(nc, sub, err)
			}
		}
		return nil
	})
}

// connectTimeout bounds one try by what ctx leaves.
func connectTimeout(ctx context.Context) time.Duration {
	limit := 2 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline))
	}
	return max(limit, 10*time.Millisecond)
}

// asyncError notes which subject a permission violation names.
func (l *link) asyncError(sub *nats.Subscription, err error) {
	if errors.Is(err, nats.ErrPermissionViolation) {
		op, subject := violation(err)
		l.mu.Lock()
		l.deny(op, subject)
		l.mu.Unlock()
	}
	l.mu.Lock()
	onError := l.onError
	l.mu.Unlock()
	if onError != nil {
		onError(err, sub)
	}
}

// seldom calls functions at most once a second. The last of those that came meanwhile is
// called then.
type seldom struct {
	mu      sync.Mutex // guards the fields below
	last    time.Time
	pending func()
}

func (s *seldom) again(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch wait := time.Second - time.Since(s.last); {
	case s.pending != nil:
		s.pending = f
	case wait <= 0:
		s.last = time.Now()
		f()
	default:
		s.pending = f
		time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			f := s.pending
			s.last, s.pending = time.Now(), nil
			f()
		})
	}
}

// tell has f told of errors from now on.
func (l *link) tell(f func(err error, sub *nats.Subscription)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.onError = f
}

// violation parses the server's text: Permissions Violation for Publish to "x".
// There is no other form of it; a text of another shape names no subject.
func violation(err error) (op, subject string) {
	text := strings.ToLower(err.Error())
	op = "publish"
	if strings.Contains(text, "violation for subscription") {
		op = "subscribe"
	}
	_, rest, _ := strings.Cut(err.Error(), `"`)
	subject, _, _ = strings.Cut(rest, `"`)
	return op, subject
}

// refused returns the violation that the server reported for a request to subject,
// or for the address that its answer is to come to, if it did.
func (l *link) refused(subject string) error {
	inbox := cmp.Or(l.nc.Opts.InboxPrefix, "_INBOX") + "."
	l.notice()
	l.mu.Lock()
	defer l.mu.Unlock()
	if d, ok := l.denied[subject]; ok && time.Since(d.at) < denialHolds {
		return &kv.PermissionError{Op: d.op, Subject: subject}
	}
	for subject, d := range l.denied {
		if d.op == "subscribe" && strings.HasPrefix(subject, inbox) && time.Since(d.at) < denialHolds {
			return &kv.PermissionError{Op: d.op, Subject: inbox + ">"}
		}
	}
	return nil
}

// denies returns the violation that the server reported for subject, if it did.
func (l *link) denies(subject string) error {
	l.notice()
	l.mu.Lock()
	defer l.mu.Unlock()
	if d, ok := l.denied[subject]; ok && time.Since(d.at) < denialHolds {
		return &PermissionError{Op: d.op, Subject: subject}
	}
	return nil
}

// anyRefused returns a violation, if there was one.
func (l *link) anyRefused() error {
	l.notice()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		return nil
	}
	return l.first
}

// notice notes the connection's last error. The handler of errors is called some
// time after what a flush waits for, and a borrowed connection has none of ours.
func (l *link) notice() {
	err := l.nc.LastError()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == l.stale || !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	l.stale = err
	op, subject := violation(err)
	if !l.owned && !strings.HasPrefix(subject, l.prefix) {
		return // somebody else's, perhaps
	}
	l.deny(op, subject)
}

func (l *link) close() {
	if l.owned {
		l.nc.Close()
	}
}

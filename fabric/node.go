package fabric

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/mail"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// A Node is one process in a fabric. It is safe for concurrent use.
type Node struct {
	cfg      Config
	link     *link
	control  *link // that of the bucket; link itself unless Config.Control
	subjects subjects
	bucket   *kv.Bucket
	office   *mail.Office
	courier  *courier
	session  *lease.Session
	holder   atomic.Pointer[lease.Session] // session, for opened, which begins before it
	members  *roster.Roster
	roster   atomic.Pointer[roster.Roster] // members, for the courier, which begins before it
	opens    *nats.Subscription
	evidence *roster.Evidence
	system   *nats.Subscription // of Config.System

	ctx    context.Context // ends with the node
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	events events

	overflows seldom

	leave   sync.Once
	left    chan struct{} // closed when Leave is done
	leftErr error         // of Leave; read after left
}

// PID returns the node's PID.
func (n *Node) PID() PID { return n.cfg.PID }

// Cluster returns the fabric's name.
func (n *Node) Cluster() string { return n.cfg.Cluster }

// Env returns the fabric's environment.
func (n *Node) Env() string { return n.cfg.Env }

// Lease returns the node's lease.
func (n *Node) Lease() time.Duration { return n.cfg.Lease }

// Incarnation returns the node's incarnation at the moment, 0 while it has none:
// passive, or its lease is lost.
func (n *Node) Incarnation() uint64 {
	if st, _ := n.session.State(); st.Hold != nil {
		return st.Hold.Incarnation
	}
	return 0
}

// Context returns a context that ends with the node. Its cause is [ErrClosed]
// after Leave, wraps [ErrPIDInUse] if another process took the PID, [ErrConnClosed] if
// the connection was closed for good, and [ErrBucket] if something that is not the
// fabric's was written over the PID's claim. A lost lease does not end it: the node joins
// again by itself; see Events.
func (n *Node) Context() context.Context { return n.ctx }

// SetMeta shows meta to the other members instead of the one before. It returns
// when that is stored.
func (n *Node) SetMeta(ctx context.Context, meta map[string]string) error {
	meta, err := checkMeta(meta)
	if err != nil {
		return err
	}
	return explain(n.session.SetMeta(ctx, meta))
}

// Host is for the packages of this module, which hold claims and follow rosters
// under the node's session. Its type is internal and may change at any time.
func (n *Node) Host() *roster.Host {
	return &roster.Host{Session: n.session, Signals: signals{n.courier}, Members: n.members, Logger: n.cfg.Logger}
}

// begin starts what runs until the node ends.
func (n *Node) begin() {
	n.link.tell(n.asyncError)
	n.wg.Go(func() { n.followConn(n.link) })
	if n.control != n.link {
		n.control.tell(n.asyncError)
		n.wg.Go(func() { n.followConn(n.control) })
	}
	if !n.cfg.Passive {
		n.wg.Go(n.followSession)
		n.wg.Go(n.followBucket)
	}
	n.cfg.Logger.Info("joined", "pid", n.cfg.PID, "cluster", n.cfg.Cluster, "env", n.cfg.Env, "rev", n.Incarnation())
}

// asyncError acts on what the connection reports.
func (n *Node) asyncError(err error, sub *nats.Subscription) {
	switch {
	case errors.Is(err, nats.ErrSlowConsumer):
		if !n.subjects.isTap(sub.Subject) { // who taps is told of what it missed
			n.overflows.again(func() {
				n.cfg.Logger.Warn("subscription overflowed: reading again", "pid", n.cfg.PID, "subject", sub.Subject)
				n.bucket.Nudge()
			})
		}
	case errors.Is(err, nats.ErrPermissionViolation):
		op, subject := violation(err)
		n.courier.permission(op, subject)
	}
}

// followConn reacts to the state of one of the node's connections.
func (n *Node) followConn(l *link) {
	changes := l.nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED)
	defer l.nc.RemoveStatusListener(changes)
	if l.nc.IsClosed() { // before anybody listened
		n.disconnect()
		return
	}
	for {
		select {
		case <-n.ctx.Done():
			return
		case status, ok := <-changes:
			if !ok {
				status = nats.CLOSED
			}
			switch status {
			case nats.RECONNECTING:
				n.events.add(Event{Kind: Disconnected, Err: l.nc.LastError()})
			case nats.CONNECTED:
				n.events.add(Event{Kind: Reconnected})
				n.evidence.Reconnected()
				n.courier.reconnected()
				n.session.Poke()
				n.bucket.Nudge()
			case nats.CLOSED:
				n.disconnect()
				return
			}
		}
	}
}

// disconnect ends the node because its connection is closed for good.
func (n *Node) disconnect() {
	if n.ctx.Err() == nil {
		n.session.Fail(ErrConnClosed)
		n.end(ErrConnClosed)
	}
}

// followSession reports losses, and ends the node when the session has ended.
func (n *Node) followSession() {
	inc := n.Incarnation() // 0 while nothing is held
	for {
		st, changed := n.session.State()
		switch {
		case st.Ended && errors.Is(st.Err, lease.ErrLeft):
			return
		case st.Ended:
			n.end(explain(st.Err))
			return
		case inc != 0 && st.Hold == nil:
			inc = 0
			n.events.add(Event{Kind: Lost, Err: explain(st.Err)})
		case st.Hold != nil && st.Hold.Incarnation != inc:
			if inc != 0 { // the loss was over before it was seen here
				n.events.add(Event{Kind: Lost, Err: ErrLost})
			}
			inc = st.Hold.Incarnation
			n.events.add(Event{Kind: Rejoined, Incarnation: inc})
		}
		select {
		case <-changed:
		case <-n.ctx.Done():
			return
		}
	}
}

// inspectEvery is how often a node looks at the bucket's settings; one of many waits at
// least inspectEach for every member, so that they ask five times a second together.
const (
	inspectEvery = 30 * time.Second
	inspectEach  = 200 * time.Millisecond
)

// followBucket reports settings of the bucket that are not a fabric's.
func (n *Node) followBucket() {
	ticker := time.NewTicker(inspectEvery)
	defer ticker.Stop()
	looked := time.Now() // by Join
	var told []*kv.ConfigError
	for {
		select {
		case <-ticker.C:
		case <-n.ctx.Done():
			return
		}
		if time.Since(looked) < time.Duration(n.size())*inspectEach {
			continue
		}
		looked = time.Now()
		_, wrong, err := n.bucket.Inspect(n.ctx)
		if err != nil { // not there, or not to be asked: the session finds that out
			continue
		}
		switch {
		case slices.EqualFunc(wrong, told, func(a, b *kv.ConfigError) bool { return a.Error() == b.Error() }):
		case len(wrong) == 0:
			n.cfg.Logger.Info("the bucket's settings are right again", "pid", n.cfg.PID)
			n.events.add(Event{Kind: Mended})
		default:
			for _, w := range wrong {
				n.cfg.Logger.Warn("the bucket's settings were changed", "pid", n.cfg.PID, "err", w)
				n.events.add(Event{Kind: Misconfigured, Err: w})
			}
		}
		told = wrong
	}
}

// foreign reports a record that is not the fabric's.
func (n *Node) foreign(err error) {
	n.cfg.Logger.Warn("a record is not the fabric's", "pid", n.cfg.PID, "err", err)
	n.events.add(Event{Kind: Foreign, Err: err})
}

// end ends the node for a cause other than Leave: nothing is held any more, and
// what is sent to the PID is for somebody else.
func (n *Node) end(cause error) {
	if n.ctx.Err() != nil {
		return
	}
	n.cancel(cause) // first: a Logger may take its time
	n.cfg.Logger.Warn("node ended", "pid", n.cfg.PID, "err", cause)
	n.courier.close()
}

// Leave ends the node: its terms and shares end, and when the functions of Lead,
// the callbacks of groups and the resignations under way are done, and the grace of
// terms that nobody resigned is over, it gives back its PID and closes what it owns. If ctx ends first it gives nothing back: the
// lease runs out, and the others see a failure. Messages that wait to be received
// are dropped; who awaits an answer is told [ErrInboxFull], but not when the message was
// being handled: for that there is [Node.Drain]. Whoever sends later is told that nobody
// is there, at the latest when Leave has returned. Leave may be called again, and then waits for the first call. It
// leaves no goroutine behind.
func (n *Node) Leave(ctx context.Context) error {
	n.leave.Do(func() {
		n.courier.handOut(ctx)
		if err := n.session.Leave(ctx); err != nil {
			n.leftErr = fmt.Errorf("leave: PID %s is left to its lease: %w", n.cfg.PID, err)
		}
		n.courier.depart(ctx)
		n.shut(ErrClosed)
		close(n.left)
		n.cfg.Logger.Info("left", "pid", n.cfg.PID, "err", n.leftErr)
	})
	<-n.left
	return n.leftErr
}

// shut stops everything but the session, and waits.
func (n *Node) shut(cause error) {
	n.cancel(cause)
	if n.members != nil {
		n.members.Close()
	}
	n.wg.Wait()
	if n.system != nil {
		n.system.Unsubscribe() // fails on a closed connection only
	}
	if n.opens != nil {
		n.opens.Unsubscribe() // fails on a closed connection only
	}
	if n.courier != nil {
		n.courier.close()
	}
	n.link.close()
	n.control.close()
}

// abort undoes an unfinished Join, gracefully: the PID may be held.
func (n *Node) abort(cause error) {
	if n.session != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(n.ctx), n.cfg.Lease)
		defer cancel()
		if err := n.session.Leave(ctx); err != nil {
			n.cfg.Logger.Debug("PID not given back", "pid", n.cfg.PID, "err", err)
		}
	}
	n.shut(cause)
}

// knows reports whether pid is in the view.
func (n *Node) knows(pid PID) bool { return n.lifeOf(pid) != 0 }

// lifeOf returns the incarnation of pid in the view, 0 if it is not there.
func (n *Node) lifeOf(pid PID) uint64 {
	r := n.roster.Load()
	if r == nil {
		return 0
	}
	v, _ := r.View()
	m, _ := v.Find(string(pid))
	return m.Inc
}

// others returns the PIDs in the view but the node's own.
func (n *Node) others() []PID {
	r := n.roster.Load()
	if r == nil {
		return nil
	}
	v, _ := r.View()
	pids := make([]PID, 0, len(v.Members))
	for _, m := range v.Members {
		if PID(m.PID) != n.cfg.PID {
			pids = append(pids, PID(m.PID))
		}
	}
	return pids
}

// size returns how many are in the view.
func (n *Node) size() int {
	r := n.roster.Load()
	if r == nil {
		return 0
	}
	v, _ := r.View()
	return len(v.Members)
}

// peers returns the view as the PIDs and their incarnations, and what is closed when
// there is another.
func (n *Node) peers() (map[PID]uint64, <-chan struct{}) {
	r := n.roster.Load()
	if r == nil {
		return nil, nil
	}
	v, changed := r.View()
	all := make(map[PID]uint64, len(v.Members))
	for _, m := range v.Members {
		all[PID(m.PID)] = m.Inc
	}
	return all, changed
}

// gone reads whether pid's claim is absent, left or dead.
func (n *Node) gone(ctx context.Context, pid PID) bool {
	e, err := n.bucket.Get(ctx, lease.KeyPID(string(pid)))
	if errors.Is(err, kv.ErrNoBucket) || err == nil && e.Value == nil {
		return true
	}
	if err != nil {
		return false
	}
	r, err := lease.ParsePID(e)
	return err == nil && !r.Held()
}

// signals lets rosters use the courier.
type signals struct{ c *courier }

func (s signals) Signal(kind string, data []byte) error { return s.c.signal(kind, data) }

func (s signals) OnSignal(kind string, f func(from string, data []byte)) (stop func(), err error) {
	return s.c.onSignal(kind, func(from PID, data []byte) { f(string(from), data) })
}

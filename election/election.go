package election

import (
	"context"
	"errors"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// An Election is one node's part in the election of one name.
type Election struct {
	node  *fabric.Node
	host  *roster.Host
	cfg   Config
	key   string
	claim *lease.Claim
}

// A Leader is who leads an election, as the bucket says. One with an empty PID is
// nobody.
type Leader struct {
	PID         fabric.PID
	Incarnation uint64
	Term        uint64
	Token       uint64
	// Since is when the term began, by the leader's clock.
	Since time.Time
	// Priority is the leader's Config.Priority.
	Priority int
	// Suspected: the leader was not heard for four fifths of its lease. It may be dead,
	// suspended, or the observer cut off. Only Leaders reports it.
	Suspected bool
	// Successor is whom the last leader handed over to, until it leads.
	Successor fabric.PID
}

// backAfter is how long Lead does not campaign after it was asked to resign.
const backAfter = time.Second

// New returns node's part in the election cfg.Name. It does no I/O and starts
// nothing. On a passive node only Leader and Leaders work.
func New(node *fabric.Node, cfg Config) (*Election, error) {
	cfg, err := cfg.complete(node.Lease())
	if err != nil {
		return nil, err
	}
	e := &Election{node: node, host: node.Host(), cfg: cfg, key: lease.KeyElection(cfg.Name)}
	e.claim = e.host.Session.Claim(e.key)
	return e, nil
}

// Campaign waits until this node leads and returns its term. ctx bounds the wait
// only. Campaigns of one name on one node queue. The caller must call Resign when
// it is done with the term; a term that is lost is given back by itself, after the
// grace.
func (e *Election) Campaign(ctx context.Context) (*Term, error) {
	t, err := e.campaign(ctx)
	if err != nil {
		return nil, err
	}
	t.grant.ReleaseWhenLost()
	return t, nil
}

// Try is Campaign for one who does not want to wait for the leader: if there is one,
// or was one whose lease has yet to run out, the error wraps [ErrTaken]. If the last
// leader has handed over to another that does not lead yet, Try leaves that one a
// second to come, and only then leads itself.
func (e *Election) Try(ctx context.Context) (*Term, error) {
	t, err := e.acquire(ctx, lease.Policy{Free: true})
	if err != nil {
		return nil, err
	}
	t.grant.ReleaseWhenLost()
	return t, nil
}

func (e *Election) campaign(ctx context.Context) (*Term, error) {
	return e.acquire(ctx, lease.Policy{})
}

func (e *Election) acquire(ctx context.Context, p lease.Policy) (*Term, error) {
	p.Grace, p.Lasting, p.Priority = e.cfg.Grace, e.cfg.HoldOnSuspend, e.cfg.Priority
	p.Proof = e.cfg.Failover == Proof
	o, err := officeOf(e.node, e.host)
	if err != nil {
		return nil, e.explain(err)
	}
	s, leave := o.stand(ctx, e)
	defer leave()
	g, err := e.claim.AcquireBy(ctx, s.policy(p, e.cfg))
	if err != nil {
		return nil, e.explain(err)
	}
	t := newTerm(e, o, g)
	e.cfg.Logger.Info("elected", "election", e.cfg.Name, "pid", e.node.PID(), "term", t.Number(), "rev", t.Token())
	return t, nil
}

// Lead campaigns and calls f while this node leads, with a context that ends with
// the term (and with ctx). If f returns while the term holds, or
// is suspended (Config.HoldOnSuspend), Lead resigns and returns f's error. If the term ended first, because it was lost or another asked for
// it, Lead waits for f, discards its error, and campaigns again. The claim is given back only after f has returned, so f must
// stop when its context ends. Lead returns ctx's cause when ctx ends, and why the
// node ended when it does.
func (e *Election) Lead(ctx context.Context, f func(context.Context, *Term) error) error {
	defer e.host.Session.Enter()()
	for {
		t, err := e.campaign(ctx)
		if err != nil {
			return err
		}
		done, err := e.lead(ctx, t, f)
		if done {
			return err
		}
	}
}

// lead runs f for one term. It reports whether Lead is done.
func (e *Election) lead(ctx context.Context, t *Term, f func(context.Context, *Term) error) (done bool, err error) {
	term, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(t.Context(), func() { cancel(context.Cause(t.Context())) })
	err = f(term, t)
	stop()
	// As it is now: the clock may have ended the term before any timer did.
	cause := context.Cause(t.Context())
	held := cause == nil && (e.cfg.HoldOnSuspend || t.Valid())
	asked, to := t.wanted()
	cancel(nil)
	// The work has stopped. The claim goes back even if ctx has ended, within a lease.
	release, cancelRelease := context.WithTimeout(context.WithoutCancel(ctx), e.node.Lease())
	defer cancelRelease()
	if releaseErr := t.Resign(release); releaseErr != nil {
		e.cfg.Logger.Warn("claim left to its lease", "election", e.cfg.Name, "err", releaseErr)
	}
	switch {
	case held && ctx.Err() == nil:
		return true, err
	case ctx.Err() != nil:
		return true, context.Cause(ctx)
	case e.host.Session.Leaving().Err() != nil:
		return true, e.explain(context.Cause(e.host.Session.Leaving()))
	case !asked && (errors.Is(cause, ErrResigned) || errors.Is(cause, ErrHandOver)):
		return true, err // by f itself
	case asked && to == "":
		e.standBack(ctx)
	}
	return false, nil
}

// standBack leaves the election to others for a while, after one of them asked for it.
func (e *Election) standBack(ctx context.Context) {
	timer := time.NewTimer(backAfter)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-e.host.Session.Leaving().Done():
	}
}

package balance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// Join makes node a member of the group cfg.Group. It returns once the group's
// coordinator has placed the member and OnChange, if set, has returned from its
// first call. The caller must call Leave when done; (*fabric.Node).Leave leaves the
// node's groups, too. A node can be in a group once ([ErrJoined]), and a passive
// node in none ([fabric.ErrPassive]).
func Join(ctx context.Context, node *fabric.Node, cfg Config) (*Group, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	if err := checkGroup(cfg.Group); err != nil {
		return nil, err
	}
	if cfg, err = cfg.under(node.Lease()); err != nil {
		return nil, err
	}
	host := node.Host()
	hold, err := host.Session.Held(ctx)
	if errors.Is(err, lease.ErrPassive) {
		return nil, fmt.Errorf("balance: join %s: %w", cfg.Group, fabric.ErrPassive)
	}
	if err != nil {
		return nil, fmt.Errorf("balance: join %s: %w", cfg.Group, err)
	}
	release, ok := host.Session.Reserve(groupKey(cfg.Group, ""))
	if !ok {
		return nil, fmt.Errorf("balance: join %s: %w", cfg.Group, ErrJoined)
	}
	m := &member{
		node: node, host: host, cfg: cfg, release: release,
		started: make(chan struct{}), settled: make(chan struct{}), writing: make(chan struct{}, 1),
		ask: roster.Ask{
			Workers: cfg.Workers, Passive: cfg.Passive, Idle: cfg.NotReady, Weight: cfg.Weight, Zone: cfg.Zone,
			Kind: cfg.kind().String(), Parts: cfg.Partitions, Stay: stays.Add(1),
		},
	}
	if cfg.kind() == (kind{}) {
		m.ask.Weight = 0 // as wishes are that know nothing but indices
	}
	if cfg.kind().strict() {
		m.strict = newStrict(m)
	}
	m.stop, m.cancel = context.WithCancel(node.Context())
	m.group = newGroup(ctx, cfg, m)
	if err := m.begin(ctx, hold); err != nil {
		m.abort(ctx)
		return nil, fmt.Errorf("balance: join %s: %w", cfg.Group, err)
	}
	return m.group, nil
}

// A member is the cluster's side of a [Group]: its source.
type member struct {
	node    *fabric.Node
	host    *roster.Host
	cfg     Config
	group   *Group
	roster  *roster.Roster
	release func()
	exit    func() // Node.Leave waits for it

	stop   context.Context // ends when the feeder must
	cancel context.CancelFunc
	wg     sync.WaitGroup

	started chan struct{} // closed when roster is there
	settled chan struct{} // closed when the member has left

	writing chan struct{} // capacity 1: full while the wish is being written

	strict *strict // nil unless the mode is

	// Of the goroutine that feeds the group: the last view delivered, and the share in it.
	seen  *roster.View
	share Share

	mu    sync.Mutex // guards the fields below
	ask   roster.Ask
	acked uint64
	since time.Time // of the wish; zero until the fabric's view has shown it
	inc   uint64    // for which the wish was written last, or may have been
	// again is for which hold the wish is to be repeated, by the goroutine that does if
	// repeating.
	again     *lease.Hold
	repeating bool
}

func (m *member) begin(ctx context.Context, hold *lease.Hold) (err error) {
	if err := m.write(ctx, hold.Incarnation, false); err != nil {
		return err
	}
	m.roster, err = roster.Start(ctx, roster.Config{
		Name: lease.RosterGroup(m.cfg.Group), Session: m.host.Session, Signals: m.host.Signals,
		Census: m.census, Quiet: m.cfg.Settle, Ceiling: MaxSettle, Logger: m.host.Logger,
	})
	if err != nil {
		return err
	}
	close(m.started)
	m.exit = m.host.Session.Enter()
	m.wg.Go(func() { m.feed(hold) })
	go m.followLeave()
	if err := m.group.start(ctx); err != nil {
		return err
	}
	m.cfg.Logger.Info("joined", "pid", m.node.PID(), "group", m.cfg.Group)
	return nil
}

// abort undoes an unfinished Join; if that takes longer than a lease, in the
// background, as long as the node is there: the wish may have landed.
func (m *member) abort(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.node.Lease())
	defer cancel()
	m.group.end(ErrClosed)
	err := m.group.withdraw(ctx)
	if err == nil {
		return
	}
	m.cfg.Logger.Debug("group not left yet", "group", m.cfg.Group, "err", err)
	exit := m.host.Session.Enter()
	go func() {
		defer exit()
		if err := m.group.withdraw(m.host.Session.Leaving()); err != nil {
			m.cfg.Logger.Debug("group not left", "group", m.cfg.Group, "err", err)
		}
	}()
}

// followLeave leaves the group when its node begins to leave: the share first,
// then OnChange, then the PID is given back.
func (m *member) followLeave() {
	select {
	case <-m.host.Session.Leaving().Done():
	case <-m.settled:
		return
	}
	if context.Cause(m.host.Session.Leaving()) != lease.ErrLeft {
		<-m.node.Context().Done() // the node ends of itself, and says why
	}
	m.group.end(m.cause())
	select {
	case <-m.group.done: // OnChange has returned: the work has stopped
	case <-m.node.Context().Done(): // Leave waits no longer, and wrote nothing
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.stop), m.node.Lease())
	defer cancel()
	if err := m.group.wind(ctx, m.cause()); err != nil {
		m.cfg.Logger.Debug("group not left", "group", m.cfg.Group, "err", err)
		m.halt()
	}
	m.exit()
}

// cause says why the node is over.
func (m *member) cause() error {
	if err := context.Cause(m.node.Context()); err != nil {
		return err
	}
	return fabric.ErrClosed
}

// halt stops what feeds the group, and waits.
func (m *member) halt() {
	m.cancel()
	m.wg.Wait()
	if m.roster != nil {
		m.roster.Close()
	}
}

// leave withdraws the wish and stops the feeder.
func (m *member) leave(ctx context.Context) error {
	m.halt()
	if m.strict != nil {
		m.strict.use("", nil)
	}
	m.mu.Lock()
	inc := m.inc
	m.mu.Unlock()
	if m.node.Context().Err() == nil && inc != 0 {
		if err := m.write(ctx, inc, true); err != nil && !errors.Is(err, kv.ErrRefused) {
			return err
		}
	}
	select {
	case <-m.settled:
	default:
		close(m.settled)
		m.release()
		if m.exit != nil {
			m.exit()
		}
		m.cfg.Logger.Info("left", "pid", m.node.PID(), "group", m.cfg.Group)
	}
	return nil
}

// feed hands views to the group while the lease is held, and writes the wish again
// for every new incarnation, until the member or the node is over.
func (m *member) feed(hold *lease.Hold) {
	placed := false // in the newest view
	if hold != nil {
		m.strict.begin(hold.Incarnation)
	}
	for {
		st, stateChanged := m.host.Session.State()
		v, viewChanged := m.roster.View()
		held := st.Hold != nil && st.Hold.Valid(m.cfg.Grace)
		switch {
		case !held:
			m.group.lose()
			m.strict.drop()
			hold, placed = nil, false
		case hold == nil || hold.Incarnation != st.Hold.Incarnation:
			m.group.lose() // the end of the former one may not have been seen
			m.strict.drop()
			placed = false
			m.strict.begin(st.Hold.Incarnation) // before the wish says what was acknowledged
			if !m.rewrite(st.Hold) {            // until then no view knows it
				hold = nil
				kv.Pause(m.stop, 3)
				break
			}
			hold = st.Hold
			continue
		case m.strict != nil:
			m.strict.deliver(v, st.Hold)
		default:
			placed = m.deliver(v, st.Hold, placed)
		}
		fuse, poll := m.fuse(st.Hold)
		select {
		case <-stateChanged:
		case <-viewChanged:
		case <-fuse:
		case <-poll:
		case <-m.strict.changed():
		case <-m.strict.written():
		case <-m.strict.overdue():
			m.repeat(hold)
		case revs := <-m.strict.fences():
			m.strict.took(revs, v)
		case <-m.stop.Done():
			if m.node.Context().Err() != nil {
				m.group.end(m.cause())
			}
			return
		}
	}
}

// fuse notes whether the share is stale, and returns what fires when that, or whether
// the lease is to be trusted, may have changed.
func (m *member) fuse(hold *lease.Hold) (fuse <-chan struct{}, poll <-chan time.Time) {
	if hold == nil {
		return nil, nil // there will be another state
	}
	// A renewal each 3/8 of a lease, and 3/10 more until one that was lost is sent
	// again: then the share is stale for a moment.
	lease := m.node.Lease()
	early := max(lease*3/10, m.cfg.Grace+lease/20)
	if hold.Valid(early) {
		m.group.stale(false)
		return hold.Context(early).Done(), nil
	}
	m.group.stale(true)
	poll = time.After(lease / 50) // until it is renewed, or lost
	if hold.Valid(m.cfg.Grace) {
		fuse = hold.Context(m.cfg.Grace).Done()
	}
	return fuse, poll
}

// deliver hands over a view in which this incarnation stands, or one that does not
// know it any more. It reports whether the member stands in it; placed says whether
// it stood in the one before.
func (m *member) deliver(v *roster.View, hold *lease.Hold, placed bool) bool {
	self, ok := v.Find(string(m.node.PID()))
	if ok && self.Inc != hold.Incarnation || !ok && !placed {
		return placed // the view is older than we are
	}
	m.mu.Lock()
	ask := m.ask
	m.mu.Unlock()
	if ok && self.Stay != ask.Stay {
		m.repeat(hold) // it has a former membership of this incarnation, or a wish that is not ours
		return placed
	}
	if ok && self.Refused {
		m.group.end(ErrMismatch)
		return placed
	}
	pid := string(m.node.PID())
	m.share, m.seen = shareAfter(m.share, m.seen, pid, v), v
	m.group.accept(delivery{
		share: m.share, members: placesIn(pid, v), stands: ok && (empty(self) || m.cfg.Partitions > 0),
		parts: partitionsOf(pid, m.cfg.Zone, v, slots(self.Slots)),
	})
	if !ok || self.Ask != ask {
		// Not granted yet, or an earlier wish has landed after a later one, or
		// something else has: the member is here, and wants what it wants.
		m.repeat(hold)
	}
	return ok
}

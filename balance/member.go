package balance

import (
	"context"
	"encoding/json"
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
		node: node, host: host, cfg: cfg, workers: cfg.Workers, release: release,
		settled: make(chan struct{}), writing: make(chan struct{}, 1),
	}
	m.stop, m.cancel = context.WithCancel(node.Context())
	m.group = newGroup(ctx, cfg, m)
	if err := m.begin(ctx, hold); err != nil {
		m.abort(ctx)
		return nil, fmt.Errorf("balance: join %s: %w", cfg.Group, err)
	}
	return m.group, nil
}

// A wish is what a member asks of its group, as the bucket holds it.
type wish struct {
	Key     string `json:"key"`
	PID     string `json:"pid"`
	Inc     uint64 `json:"inc"`
	Workers int    `json:"workers"`
	Passive bool   `json:"passive,omitempty"`
	Gone    bool   `json:"gone,omitempty"`
}

func groupKey(group, pid string) string { return lease.KeyWish(group, pid) }

// keepGone is the server's TTL of a wish that is over.
const keepGone = time.Minute

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

	settled chan struct{} // closed when the member has left

	writing chan struct{} // capacity 1: full while the wish is being written

	mu      sync.Mutex // guards the fields below
	workers int
	inc     uint64 // for which the wish was written last, or may have been
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

// setWorkers writes a new wish.
func (m *member) setWorkers(ctx context.Context, n int) error {
	for {
		hold, err := m.host.Session.Held(ctx)
		if err != nil {
			return err
		}
		m.mu.Lock()
		m.workers = n
		m.mu.Unlock()
		err = m.write(ctx, hold.Incarnation, false)
		if err == nil || !errors.Is(err, kv.ErrRefused) {
			return err
		}
		if err := kv.Pause(ctx, 0); err != nil {
			return err
		}
	}
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

// write stores the wish for one incarnation, with the workers that are wanted when
// its turn comes.
func (m *member) write(ctx context.Context, inc uint64, gone bool) error {
	select {
	case m.writing <- struct{}{}:
		defer func() { <-m.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	m.mu.Lock()
	m.inc = inc // from now on it may be stored, whether we hear of it or not
	w := wish{
		Key: groupKey(m.cfg.Group, string(m.node.PID())), PID: string(m.node.PID()), Inc: inc,
		Workers: m.workers, Passive: m.cfg.Passive, Gone: gone,
	}
	m.mu.Unlock()
	var ttl time.Duration
	if gone {
		ttl = keepGone
	}
	value, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return m.host.Session.Want(ctx, w.Key, inc, value, ttl)
}

// feed hands views to the group while the lease is held, and writes the wish again
// for every new incarnation, until the member or the node is over.
func (m *member) feed(hold *lease.Hold) {
	placed := false // in the newest view
	for {
		st, stateChanged := m.host.Session.State()
		v, viewChanged := m.roster.View()
		switch {
		case st.Hold == nil || !st.Hold.Valid(0):
			m.group.lose()
			hold, placed = nil, false
		case hold == nil || hold.Incarnation != st.Hold.Incarnation:
			if !m.repeat(st.Hold) {
				kv.Pause(m.stop, 3)
				break
			}
			hold = st.Hold
			continue
		default:
			placed = m.deliver(v, st.Hold, placed)
		}
		select {
		case <-stateChanged:
		case <-viewChanged:
		case <-m.stop.Done():
			if m.node.Context().Err() != nil {
				m.group.end(m.cause())
			}
			return
		}
	}
}

// deliver hands over a view in which this incarnation stands, or one that does not
// know it any more. It reports whether the member stands in it; placed says whether
// it stood in the one before.
func (m *member) deliver(v *roster.View, hold *lease.Hold, placed bool) bool {
	self, ok := v.Find(string(m.node.PID()))
	if ok && self.Inc != hold.Incarnation || !ok && !placed {
		return placed // the view is older than we are
	}
	if ok && self.Passive != m.cfg.Passive && (m.cfg.Passive || !placed) {
		// It has a former membership of this incarnation, or a wish that is not ours.
		if placed {
			m.repeat(hold)
		}
		return placed
	}
	wants := make([]want, len(v.Members))
	for i, o := range v.Members {
		wants[i] = want{o.PID, o.Workers, o.Passive}
	}
	all, total := assign(string(m.node.PID()), wants)
	m.group.deliver(shareIn(all, total, v.Epoch), all)
	m.mu.Lock()
	differs := ok && !m.cfg.Passive && (self.Passive || self.Workers != m.workers)
	m.mu.Unlock()
	if differs || !ok {
		// Not granted yet, or an earlier wish has landed after a later one, or
		// something else has: the member is here, and wants what it wants.
		m.repeat(hold)
	}
	return ok
}

// repeat writes the wish once more, and gives up when the hold ends: the share must
// end with it, whatever becomes of the wish.
func (m *member) repeat(hold *lease.Hold) bool {
	ctx, cancel := context.WithCancel(m.stop)
	defer cancel()
	defer context.AfterFunc(hold.Context(0), cancel)()
	err := m.write(ctx, hold.Incarnation, false)
	if err != nil {
		m.cfg.Logger.Debug("wish not repeated", "group", m.cfg.Group, "err", err)
	}
	return err == nil
}

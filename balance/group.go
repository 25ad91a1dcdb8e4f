package balance

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/natsfabric/natsfabric/internal/latest"
)

// A Group is one membership: made by [Join] or [Static], ended by Leave. It is safe
// for concurrent use.
type Group struct {
	cfg    Config
	src    source
	fixed  bool // leaving does not change the total: Static
	ctx    context.Context
	cancel context.CancelCauseFunc
	state  atomic.Pointer[state]

	notifier atomic.Uint64 // the goroutine that calls OnChange, 0 before it began
	done     chan struct{} // closed when OnChange will not be called again
	turn     chan struct{} // holds one token, taken to withdraw; guards left
	left     bool          // the source has been told

	units slots                // what OnRevoke and OnAssign were told; of their goroutine
	shown latest.Value[uint64] // the newest state that the callbacks are done with

	mu    sync.Mutex // held to replace state; guards those below
	epoch uint64     // of the newest view
	fresh bool       // the next view counts whatever its epoch
	seen  slots      // in a strict mode, what readers may have seen that no callback was told of
}

// A source is where a group's views come from. It hands them to deliver, reports a
// lost lease to lose, and the end of the node to end.
type source interface {
	// setWorkers asks for n workers, 1 to MaxWorkers. It does not wait until they
	// are granted: they come with a later view.
	setWorkers(ctx context.Context, n int) error
	// setReady asks for the workers' indices, or for none. It does not wait, either.
	setReady(ctx context.Context, ready bool) error
	// leave withdraws the member, stops what feeds the group, and waits for it. It
	// is called after the last OnChange returned, by one caller at a time, until it
	// first returned nil; the node may have ended before.
	leave(ctx context.Context) error
}

// A state is what readers see of a group at one moment. It is never modified: a
// newer one replaces it, and then its newer is closed.
type state struct {
	begun   bool            // share is set: the member was placed once
	share   Share           // frozen while an active member has no index
	members func() []Placed // nil: none
	parts   *Partitions
	moves   uint64 // how often what the member has became something else
	losses  uint64 // how often an index was lost
	loss    Share  // the share without an index, of the last loss
	ended   error  // why the group ended; nil while it has not
	number  uint64 // grows
	newer   chan struct{}
}

// newGroup returns a group that waits for its first view from src; start must follow.
// cfg is complete. Values of ctx reach the group's context, its end does not.
func newGroup(ctx context.Context, cfg Config, src source) *Group {
	g := &Group{cfg: cfg, src: src, fresh: true, done: make(chan struct{}), turn: make(chan struct{}, 1)}
	g.turn <- struct{}{}
	g.ctx, g.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	g.state.Store(&state{share: Share{First: -1}, newer: make(chan struct{})})
	return g
}

// deliver makes a view the group's newest: share is the member's own part of it,
// placed are all its members. A view that is not newer than the last is ignored,
// but for the first one after lose. After lose, the caller must hand over only views
// in which the member stands with its new incarnation: an older one would give back
// indices that may be another's by now.
func (g *Group) deliver(share Share, placed []Placed) {
	g.accept(delivery{share: share, members: func() []Placed { return placed }})
}

// A delivery is a view as one member sees it.
type delivery struct {
	share   Share
	members func() []Placed // everyone, with its place; called when it is asked for
	parts   *Partitions
	// stands: the member is in the view, so that having no index is no loss of its
	// place.
	stands bool
	// more: the view may be known; the member has come to act on more of it.
	more bool
}

// accept is deliver for everything that a view can say.
func (g *Group) accept(d delivery) {
	g.mu.Lock()
	defer g.mu.Unlock()
	cur, share := g.state.Load(), d.share
	if cur.ended != nil || !g.fresh && (share.Epoch < g.epoch || share.Epoch == g.epoch && !d.more) {
		return
	}
	g.epoch, g.fresh = share.Epoch, false
	share.Stale = cur.share.Stale && share.First >= 0
	next := *cur
	next.members, next.parts = d.members, d.parts
	switch {
	case cur.share.First >= 0 && share.First < 0 && !g.cfg.Passive:
		next.drop(share) // given up, or the others expelled it
	case share.First >= 0 || g.cfg.Passive || d.stands:
		next.begun, next.share = true, share
	}
	g.replace(next)
}

// stale notes whether the member may not know of newer views.
func (g *Group) stale(is bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	cur := g.state.Load()
	if cur.ended != nil || cur.share.Stale == is || cur.share.First < 0 {
		return
	}
	next := *cur
	next.share.Stale = is
	g.replace(next)
}

// lose takes the index away because the lease was lost. The group goes on: it waits
// for a view in which the member stands again.
func (g *Group) lose() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fresh = true // the bucket may have been made anew
	cur := g.state.Load()
	if cur.ended == nil && (cur.share.First >= 0 || cur.parts.mine() != "") {
		next := *cur
		g.vacate(&next)
		g.replace(next)
	}
}

// end takes the index away and ends the group for good, because of cause. Only the
// first call counts.
func (g *Group) end(cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	cur := g.state.Load()
	if cur.ended != nil {
		return
	}
	next := *cur
	next.ended = cause
	g.vacate(&next)
	g.replace(next)
	g.cancel(cause) // after the share: who sees the context end sees no index
}

// vacate takes the member out of st, and its index away if it has one.
func (g *Group) vacate(st *state) {
	if s := st.share; s.First >= 0 {
		if !g.fixed {
			s.Total -= s.Workers
		}
		st.drop(Share{First: -1, Total: s.Total, Epoch: s.Epoch})
	}
	before := *st
	st.members = sync.OnceValue(func() []Placed {
		return slices.DeleteFunc(slices.Clone(before.placed()), func(p Placed) bool { return p.Self })
	})
	st.parts = st.parts.withoutSelf()
}

// tell returns what has to be revoked, and what to be assigned, to bring the callbacks
// from what they were told to units; peek does not take note of it. In a strict mode
// what only readers have seen has to be revoked as well: their work must stop, too.
func (g *Group) tell(units slots, peek bool) (lost, got slots) {
	g.mu.Lock()
	defer g.mu.Unlock()
	newest := g.state.Load().units()
	lost, got = g.units.and(g.seen.without(newest)).without(units), units.without(g.units)
	if !peek {
		g.units, g.seen = units, ""
		if g.cfg.Mode != Default {
			g.seen = newest
		}
	}
	return lost, got
}

// placed returns the members and their places.
func (st *state) placed() []Placed {
	if st.members == nil {
		return nil
	}
	return st.members()
}

// units returns what the member has: partitions if there are any, else indices.
func (st *state) units() slots {
	if st.parts != nil {
		return st.parts.mine()
	}
	return st.share.units()
}

// drop notes in st that the index is lost, with s as the share from now on.
func (st *state) drop(s Share) {
	st.share, st.loss = s, s
	st.losses++
}

// replace makes next the state. mu is held.
func (g *Group) replace(next state) {
	next.newer = make(chan struct{})
	next.number++
	if now := g.state.Load(); !now.share.same(next.share) || now.parts.mine() != next.parts.mine() {
		next.moves++
	}
	if g.cfg.Mode != Default {
		g.seen = g.seen.and(next.units())
	}
	close(g.state.Swap(&next).newer)
}

// Share returns the member's current share: one atomic load, made for asking before
// every unit of work. OnChange and Shares report the same values, but a reader of
// them may be behind.
func (g *Group) Share() Share { return g.trusted(g.state.Load()) }

// trusted returns the share of st, and in a strict mode none if the lease has ended
// since: a process that was stopped must not go by what it had before.
func (g *Group) trusted(st *state) Share {
	if m, ok := g.src.(*member); ok && m.strict != nil && st.share.First >= 0 && !m.strict.valid() {
		return Share{First: -1, Total: st.share.Total, Epoch: st.share.Epoch}
	}
	return st.share
}

// Shares returns the member's shares as they change: first the current one, then
// each newer one, also if only its epoch is new. The newest wins: a share that was
// replaced before the loop came to it is skipped, but the loss of an index never
// is: a share with First -1 comes between the indices before and after. When
// the group has ended, the loop gets the final share and then one error, the cause;
// when ctx ends, its cause. The share beside an error has First -1.
func (g *Group) Shares(ctx context.Context) iter.Seq2[Share, error] {
	return func(yield func(Share, error) bool) {
		var c cursor
		for {
			st := g.state.Load()
			share, ok := c.next(st)
			switch {
			case ctx.Err() != nil:
				yield(Share{First: -1}, context.Cause(ctx))
				return
			case ok:
				if !yield(share, nil) {
					return
				}
			case st.ended != nil:
				yield(Share{First: -1}, st.ended)
				return
			default:
				wait(ctx, st.newer)
			}
		}
	}
}

// Members returns the members of the newest view that this member has seen, sorted
// by PID, itself included while it has a place. The slice is the caller's.
func (g *Group) Members() []Placed { return slices.Clone(g.state.Load().placed()) }

// SetWorkers asks for n indices instead of the former number. 0 means
// [DefaultWorkers]; a number below 0 or above [MaxWorkers], and a passive member, is
// a [*ConfigError]. It returns when the wish is recorded; Share and OnChange show it
// when it is granted with the next view, after the settle window, and until then
// only what was granted before. With [Static] it takes effect at once, and a number
// that does not fit below the total is a [*ConfigError].
func (g *Group) SetWorkers(ctx context.Context, n int) error {
	if err := g.state.Load().ended; err != nil {
		return err
	}
	n, err := checkWorkers(n)
	if err != nil {
		return err
	}
	switch {
	case g.cfg.Passive:
		return &ConfigError{"Workers", "the member is passive and takes none"}
	case g.cfg.Mode != Default && n > MaxStrict:
		return &ConfigError{"Workers", fmt.Sprintf("%d is outside 0 to %d in a strict mode", n, MaxStrict)}
	}
	return g.src.setWorkers(ctx, n)
}

// SetReady says whether the member can take work. While it is not ready it has no
// index, and the total does not count its workers: so a member that takes long to warm
// up joins with Config.NotReady, and one that is to be emptied calls SetReady(ctx,
// false), and looks at its shares until nothing is left; see Drain. It returns when
// the wish is recorded. A passive member is never ready; a static one always.
func (g *Group) SetReady(ctx context.Context, ready bool) error {
	if err := g.state.Load().ended; err != nil {
		return err
	}
	if g.cfg.Passive {
		return &ConfigError{"Passive", "the member takes no index"}
	}
	return g.src.setReady(ctx, ready)
}

// Drain gives up the member's indices and partitions, as SetReady(ctx, false) does, and
// returns when it has none any more and OnRevoke and OnChange have returned. progress,
// if not nil, is called with the number that is left, whenever it has changed. The
// member stays in the group; Leave it then, or call SetReady.
func (g *Group) Drain(ctx context.Context, progress func(left int)) error {
	if err := g.SetReady(ctx, false); err != nil {
		return err
	}
	for last := -1; ; {
		st := g.state.Load()
		left := st.units().count()
		if left != last && progress != nil {
			progress(left)
		}
		last = left
		shown, changed := g.shown.Load()
		switch {
		case st.ended != nil:
			return st.ended
		case left == 0 && (shown >= st.number || !g.cfg.calls()):
			return nil
		}
		select {
		case <-st.newer:
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Partitions returns the partitions of the newest view and who has them; none if the
// group has none. Like a Share it is a value of one moment: a unit of work should ask
// once.
func (g *Group) Partitions() *Partitions {
	if p := g.state.Load().parts; p != nil {
		return p
	}
	return &Partitions{}
}

// Context ends when the member leaves the group ([ErrClosed]) or its node ended (the
// node's cause, such as fabric.ErrClosed); context.Cause tells which. Share has no
// index by then. A lease that was lost does not end it, because the node rejoins:
// work that needs the index must watch Share, Shares or OnChange.
func (g *Group) Context() context.Context { return g.ctx }

// Leave gives the member's indices up. Share is -1 and Context has ended at once;
// then Leave waits for a running OnChange and the final one, and only then tells the
// others, so that work which OnChange has stopped cannot overlap with theirs. If ctx
// ends first, or the others cannot be told, it returns the error, and may be called
// again to finish. After it returned nil, no goroutine is left, and calling it again
// does nothing. It must not be called from inside OnChange ([ErrInCallback]), nor
// waited for there.
func (g *Group) Leave(ctx context.Context) error {
	if id := goroutineID(); id != 0 && id == g.notifier.Load() {
		return ErrInCallback
	}
	return g.wind(ctx, ErrClosed)
}

// wind ends the group because of cause, waits for OnChange, and withdraws.
func (g *Group) wind(ctx context.Context, cause error) error {
	g.end(cause)
	if err := wait(ctx, g.done); err != nil {
		return fmt.Errorf("balance: leave: OnChange has not returned: %w", err)
	}
	return g.withdraw(ctx)
}

// withdraw tells the source, once, that the member is gone.
func (g *Group) withdraw(ctx context.Context) error {
	if err := wait(ctx, g.turn); err != nil {
		return fmt.Errorf("balance: leave: another call is under way: %w", err)
	}
	defer func() { g.turn <- struct{}{} }()
	if g.left {
		return nil
	}
	if err := g.src.leave(ctx); err != nil {
		return fmt.Errorf("balance: leave: %w", err)
	}
	g.left = true
	return nil
}

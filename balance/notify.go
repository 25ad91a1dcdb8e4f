package balance

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"strconv"
)

// A cursor is how far one reader of a group's states has come. Two kinds of reader
// exist, OnChange and Shares, and what either may skip is decided here alone.
type cursor struct {
	begun  bool
	shown  Share
	losses uint64
}

// next returns the share to show next now that st is the newest state, and false if
// the reader is up to date. It is to be called until then, because a reader who was
// shown an index and missed that it was lost is told of the loss first.
func (c *cursor) next(st *state) (Share, bool) {
	share := st.share
	switch {
	case !st.begun || c.begun && share == c.shown && st.losses == c.losses:
		return Share{}, false
	case c.begun && c.shown.First >= 0 && st.losses != c.losses:
		share = st.loss
	case c.begun && c.shown.First < 0 && share.First < 0 && st.losses > 0 && st.ended != nil:
		return Share{}, false // the end of one who knows that it has nothing is no news
	}
	*c = cursor{begun: true, shown: share, losses: st.losses}
	return share, true
}

// start waits for the first share, shows it to OnChange, and sees to it that the
// later ones are shown. If ctx or the group ended before, the group has ended and
// nothing was shown.
func (g *Group) start(ctx context.Context) error {
	for {
		st := g.state.Load()
		switch {
		case st.ended != nil:
			close(g.done)
			return st.ended
		case st.begun:
			g.notify(st)
			return nil
		}
		if err := wait(ctx, st.newer); err != nil {
			g.end(ErrClosed)
			close(g.done)
			return err
		}
	}
}

// notify shows the share of st to the callbacks, then starts the goroutine that shows
// them each later one. The goroutine ends with the group; Leave waits for it.
func (g *Group) notify(st *state) {
	if !g.cfg.calls() {
		close(g.done)
		return
	}
	var c cursor
	share, _ := c.next(st)
	g.show(share, st, true)
	go func() {
		defer close(g.done)
		g.notifier.Store(goroutineID())
		g.follow(c)
	}()
}

// follow shows each share after the one that c was shown, until the group has ended
// and the final one was shown.
func (g *Group) follow(c cursor) {
	for {
		st, before := g.state.Load(), c.shown
		share, ok := c.next(st)
		switch {
		case ok:
			g.show(share, st, !share.same(before))
		case g.owes(st): // partitions, or what is gone again
			g.show(st.share, st, false)
		case st.ended != nil:
			return
		default:
			g.shown.Store(st.number)
			<-st.newer
		}
	}
}

// owes reports whether OnRevoke or OnAssign have to be called for st.
func (g *Group) owes(st *state) bool {
	lost, got := g.tell(st.units(), true)
	return lost != "" || got != ""
}

// show calls the callbacks for share, one that c has made of st.
func (g *Group) show(share Share, st *state, changed bool) {
	units := st.units()
	if share != st.share { // a loss that is over
		units = ""
	}
	lost, got := g.tell(units, false)
	if lost != "" && g.cfg.OnRevoke != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(g.ctx), g.cfg.RevokeTimeout)
		g.cfg.OnRevoke(ctx, slices.Collect(lost.all()))
		cancel()
	}
	if changed && g.cfg.OnChange != nil {
		g.cfg.OnChange(share)
	}
	if got != "" && g.cfg.OnAssign != nil {
		g.cfg.OnAssign(g.ctx, slices.Collect(got.all()))
	}
}

// wait waits until it can receive from ready, or returns the cause of ctx's end. If
// both are possible, ready wins.
func wait(ctx context.Context, ready <-chan struct{}) error {
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-ready:
		return nil
	default:
		return context.Cause(ctx)
	}
}

// goroutineID returns the number of the calling goroutine, or 0 if the runtime does
// not say. It serves only to tell a Leave inside OnChange, which would wait for
// itself, from one beside it; the runtime gives the number in stack traces alone.
func goroutineID() uint64 {
	var buf [64]byte
	text := buf[:runtime.Stack(buf[:], false)]
	text, _ = bytes.CutPrefix(text, []byte("goroutine "))
	number, _, _ := bytes.Cut(text, []byte(" "))
	id, err := strconv.ParseUint(string(number), 10, 64)
	if err != nil {
		return 0
	}
	return id
}

package balance

import (
	"bytes"
	"context"
	"runtime"
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
	case c.begun && c.shown.First < 0 && share.First < 0 && st.losses > 0:
		return Share{}, false // found again and lost again between two looks
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

// notify calls OnChange with the share of st, then starts the goroutine that calls
// it with each later one. The goroutine ends with the group; Leave waits for it.
func (g *Group) notify(st *state) {
	if g.cfg.OnChange == nil {
		close(g.done)
		return
	}
	var c cursor
	share, _ := c.next(st)
	g.cfg.OnChange(share)
	go func() {
		defer close(g.done)
		g.notifier.Store(goroutineID())
		g.follow(c)
	}()
}

// follow calls OnChange with each share after the one that c was shown, until the
// group has ended and the final one was shown.
func (g *Group) follow(c cursor) {
	for {
		st, before := g.state.Load(), c.shown
		share, ok := c.next(st)
		switch {
		case ok && !share.same(before):
			g.cfg.OnChange(share)
		case ok:
		case st.ended != nil:
			return
		default:
			<-st.newer
		}
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

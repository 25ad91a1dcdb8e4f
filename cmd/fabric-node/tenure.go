package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/natsfabric/natsfabric/balance"
)

// A duty is what a worker's next start is for.
type duty struct {
	index, total int
	env          []string
}

// admitPoll is how often a worker asks whether it may start, where a newer share is on
// its way to the crew.
const admitPoll = 20 * time.Millisecond

// begin tells the crew of its group. Nothing starts before.
func (c *crew) begin(share func() balance.Share, token func(int) (uint64, error)) {
	c.share, c.token = share, token
	close(c.joined)
}

// guard stops all workers at once when the member has lost its indices: the callbacks
// may be waiting for a stop that began earlier. It returns when the group has ended.
func (c *crew) guard(ctx context.Context, g *balance.Group) {
	for s := range g.Shares(ctx) {
		if s.First < 0 {
			c.lose()
		}
	}
}

// lose ends the tenure, unless the member has indices again.
func (c *crew) lose() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fire != nil && c.share().First < 0 {
		c.fire()
		c.settled = false
	}
}

// admit waits until the member has the index that w is to start for, and the total is
// right; a change that makes it otherwise comes to w, or ends ctx.
func (c *crew) admit(ctx context.Context, w *worker) (env []string, ok bool) {
	select {
	case <-c.joined:
	case <-ctx.Done():
		return nil, false
	}
	for {
		d := w.duty.Load()
		if now := c.share(); now.First >= 0 && now.Has(d.index) && now.Total == d.total {
			token, err := c.token(d.index)
			switch {
			case err == nil:
				return append(slices.Clone(d.env), fmt.Sprint("FABRIC_WORKER_TOKEN=", token)), ctx.Err() == nil
			case errors.Is(err, balance.ErrNotStrict):
				return d.env, ctx.Err() == nil
			}
		}
		select {
		case <-time.After(admitPoll):
		case <-ctx.Done():
			return nil, false
		}
	}
}

// blame ends the crew if ch could not be killed.
func (c *crew) blame(ch *child) {
	if err := ch.refusal(); err != nil {
		c.end(err)
	}
}

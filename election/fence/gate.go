package fence

import (
	"context"
	"fmt"
	"sync"
)

// A Gate admits effects in the order of their tokens. The zero Gate remembers the
// highest one as long as the process lives; one of [Open] in a file.
type Gate struct {
	store *store // nil: none

	mu      sync.Mutex // guards the fields below
	closed  bool
	highest uint64
	running int           // effects of highest
	idle    chan struct{} // closed when running falls to 0; nil if nobody waits
	raising bool          // a higher token waits for idle, or is being stored
	raised  chan struct{} // closed when raising ends
}

// Highest returns the highest token that was admitted.
func (g *Gate) Highest() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.highest
}

// Do calls f if no token higher than token was admitted before, and returns its error;
// else it returns a [*StaleError]. A token that is higher than all before is stored
// first, when the effects of lower ones have returned. ctx bounds the waiting, not f.
func (g *Gate) Do(ctx context.Context, token uint64, f func() error) error {
	if err := g.enter(ctx, token); err != nil {
		return err
	}
	defer g.leave()
	return f()
}

// enter admits one effect of token.
func (g *Gate) enter(ctx context.Context, token uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		switch {
		case g.closed:
			return ErrClosed
		case token < g.highest, token == 0: // nobody has token 0
			return &StaleError{token, g.highest}
		case g.raising:
			if err := g.await(ctx, g.raised); err != nil {
				return err
			}
		case token == g.highest:
			g.running++
			return nil
		default:
			if err := g.raise(ctx, token); err != nil {
				return err
			}
		}
	}
}

// raise makes token the highest. The caller holds g.mu, which is given up meanwhile.
func (g *Gate) raise(ctx context.Context, token uint64) error {
	g.raising, g.raised = true, make(chan struct{})
	defer func() {
		g.raising = false
		close(g.raised)
	}()
	for g.running > 0 {
		if err := g.await(ctx, g.quiet()); err != nil {
			return err
		}
	}
	if g.store != nil {
		g.mu.Unlock()
		err := g.store.save(token)
		g.mu.Lock()
		if err != nil {
			return fmt.Errorf("fence: store token %d: %w", token, err)
		}
	}
	g.highest = token
	return nil
}

// quiet returns a channel that is closed when no effect runs. The caller holds g.mu,
// and one does.
func (g *Gate) quiet() <-chan struct{} {
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	return g.idle
}

// await waits for c without g.mu.
func (g *Gate) await(ctx context.Context, c <-chan struct{}) error {
	g.mu.Unlock()
	defer g.mu.Lock()
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running--; g.running == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// Close admits nothing more, waits for the effects that run, and closes the file.
func (g *Gate) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	for g.running > 0 || g.raising {
		var c <-chan struct{} = g.raised
		if !g.raising {
			c = g.quiet()
		}
		g.mu.Unlock()
		<-c
		g.mu.Lock()
	}
	if g.store == nil {
		return nil
	}
	return g.store.close()
}

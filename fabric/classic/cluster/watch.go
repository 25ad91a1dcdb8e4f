package cluster

import (
	"context"
	"slices"
	"sync"

	"github.com/natsfabric/natsfabric/fabric"
)

// A watch knows the remotes and calls the callbacks. One goroutine follows the
// members, and another calls, so that a callback that blocks does not hold back what
// is known.
type watch struct {
	wake chan struct{} // capacity 1: a token means that there are calls

	mu    sync.Mutex // guards the fields below
	known map[Remote]struct{}
	// calls are due. They grow while a callback blocks and remotes come and go.
	calls   []func()
	added   *func(Remote) // pointers tell one setting from the next
	removed *func(Remote)
	changed *func([]Remote)
}

func (w *watch) init() {
	w.wake = make(chan struct{}, 1)
	w.known = make(map[Remote]struct{})
}

// RemoteAdded has f called for each remote that is here, and then for each that comes.
// It replaces the f before; nil ends it.
func (n *Node) RemoteAdded(f func(Remote)) {
	w := &n.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.added = nil; f != nil {
		w.added = &f
		for _, r := range w.remotes() {
			w.tellAdded(r)
		}
	}
}

// RemoteRemoved has f called for each remote that goes, by itself or not. It replaces
// the f before; nil ends it.
func (n *Node) RemoteRemoved(f func(Remote)) {
	w := &n.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.removed = nil; f != nil {
		w.removed = &f
	}
}

// RemoteChanged has f called with all remotes, if there are any, and then after each
// change. It replaces the f before; nil ends it.
func (n *Node) RemoteChanged(f func([]Remote)) {
	w := &n.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed = nil; f != nil {
		w.changed = &f
		if len(w.known) > 0 {
			w.tellChanged()
		}
	}
}

// follow keeps known, and closes synced when everyone who was here is in it.
func (w *watch) follow(ctx context.Context, node *fabric.Node, synced chan<- struct{}) {
	for c, err := range node.Changes(ctx) {
		r := Remote(c.Member.PID)
		switch {
		case err != nil:
			return
		case c.Kind == fabric.Synced:
			close(synced)
		case c.Member.PID == node.PID():
		case c.Kind == fabric.Joined:
			w.mu.Lock()
			w.known[r] = struct{}{}
			w.tellAdded(r)
			w.tellChanged()
			w.mu.Unlock()
		case c.Kind == fabric.Left, c.Kind == fabric.Failed:
			w.mu.Lock()
			delete(w.known, r)
			w.tellRemoved(r)
			w.tellChanged()
			w.mu.Unlock()
		}
	}
}

// tellAdded, tellRemoved, tellChanged, call and remotes need w.mu.

func (w *watch) tellAdded(r Remote) {
	if f := w.added; f != nil {
		w.call(func() bool { return w.added == f }, func() { (*f)(r) })
	}
}

func (w *watch) tellRemoved(r Remote) {
	if f := w.removed; f != nil {
		w.call(func() bool { return w.removed == f }, func() { (*f)(r) })
	}
}

func (w *watch) tellChanged() {
	if f := w.changed; f != nil {
		all := w.remotes()
		w.call(func() bool { return w.changed == f }, func() { (*f)(all) })
	}
}

// call has f called unless it is no longer valid then.
func (w *watch) call(valid func() bool, f func()) {
	w.calls = append(w.calls, func() {
		w.mu.Lock()
		ok := valid()
		w.mu.Unlock()
		if ok {
			f()
		}
	})
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watch) remotes() []Remote {
	all := make([]Remote, 0, len(w.known))
	for r := range w.known {
		all = append(all, r)
	}
	slices.Sort(all)
	return all
}

// run calls what is due until ctx ends.
func (w *watch) run(ctx context.Context) {
	for {
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
		w.mu.Lock()
		calls := w.calls
		w.calls = nil
		w.mu.Unlock()
		for _, f := range calls {
			if ctx.Err() == nil {
				f()
			}
		}
	}
}

func (w *watch) knows(r Remote) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.known[r]
	return ok
}

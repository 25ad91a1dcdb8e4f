package fabric

import (
	"context"
	"iter"
	"maps"

	"github.com/natsfabric/natsfabric/internal/latest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// View returns the newest view that the node has. It does no I/O.
func (n *Node) View() View {
	v, _ := n.members.View()
	return viewOf(v)
}

func viewOf(v *roster.View) View {
	out := View{Epoch: v.Epoch, Members: make([]Member, len(v.Members))}
	for i, m := range v.Members {
		out.Members[i] = memberOf(m)
	}
	return out
}

func memberOf(m *roster.Member) Member {
	return Member{PID: PID(m.PID), Incarnation: m.Inc, Host: m.Host, Since: m.Since, Meta: m.Meta}
}

// Changes reports the members: first each that is present as [Joined], then
// [Synced], then every change in the order of the views. A reader that is slow may
// miss what came and went between, never a final state: after the last change the
// changes add up to the view. The iteration ends, with an error, with ctx or when
// the node does; and when the loop is left.
func (n *Node) Changes(ctx context.Context) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		told, changed := n.members.View()
		for _, m := range told.Members {
			if !yield(Change{Kind: Joined, Member: memberOf(m), Epoch: told.Epoch}, nil) {
				return
			}
		}
		if !yield(Change{Kind: Synced, Epoch: told.Epoch}, nil) {
			return
		}
		for {
			select {
			case <-changed:
			case <-ctx.Done():
				yield(Change{}, context.Cause(ctx))
				return
			case <-n.ctx.Done():
				yield(Change{}, context.Cause(n.ctx))
				return
			}
			var next *roster.View
			next, changed = n.members.View()
			for c := range steps(told, next) {
				if !yield(c, nil) {
					return
				}
			}
			told = next
		}
	}
}

// steps yields what leads from one view to another.
func steps(from, to *roster.View) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		changed := func(old, m *roster.Member) bool { return !maps.Equal(old.Meta, m.Meta) }
		for s := range roster.Steps(from, to, changed) {
			if !yield(ChangeOf(s, to.Epoch)) {
				return
			}
		}
	}
}

// ChangeOf is for the packages of this module, as [Node.Host] is: what a step to a view
// of an epoch, of the fabric or of a group, is as a change.
func ChangeOf(s roster.Step, epoch uint64) Change {
	c := Change{Kind: changeKinds[s.Kind], Member: memberOf(s.Member), Epoch: epoch}
	if s.Kind == roster.Departed && s.Departure.Failed {
		c.Kind, c.Reason = Failed, reasonOf(s.Departure.By)
	}
	return c
}

var changeKinds = [...]ChangeKind{
	roster.Joined: Joined, roster.Departed: Left, roster.Changed: Updated, roster.Suspected: Suspected, roster.Found: Alive,
}

// keepEvents is how many events a slow reader of Events can be behind.
const keepEvents = 256

// events is a log of the newest events, numbered from 0.
type events struct {
	log latest.Value[eventLog]
}

type eventLog struct {
	first int // number of the first that is kept
	kept  []Event
}

func (e *events) add(ev Event) {
	e.log.Update(func(l eventLog) (eventLog, bool) {
		kept := append(l.kept[:len(l.kept):len(l.kept)], ev)
		drop := max(0, len(kept)-keepEvents)
		return eventLog{l.first + drop, kept[drop:]}, true
	})
}

// Events reports what happens to this node from now on. Of a reader that is more
// than 256 behind, the oldest are dropped. The iteration ends, with an error, with
// ctx or when the node does; and when the loop is left.
func (n *Node) Events(ctx context.Context) iter.Seq2[Event, error] {
	start := n.events.log.Get()
	next := start.first + len(start.kept)
	return func(yield func(Event, error) bool) {
		for {
			l, changed := n.events.log.Load()
			for next = max(next, l.first); next < l.first+len(l.kept); next++ {
				if !yield(l.kept[next-l.first], nil) {
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				yield(Event{}, context.Cause(ctx))
				return
			case <-n.ctx.Done():
				yield(Event{}, context.Cause(n.ctx))
				return
			}
		}
	}
}

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

func memberOf(m roster.Member) Member {
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

// steps yields what leads from one view to another: who is gone, who is new or
// changed, who is suspected and who no longer is, each in the order of the PIDs.
func steps(from, to *roster.View) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		now := make(map[string]roster.Member, len(to.Members))
		for _, m := range to.Members {
			now[m.PID] = m
		}
		before := make(map[string]roster.Member, len(from.Members))
		for _, m := range from.Members {
			before[m.PID] = m
			if now[m.PID].Inc == m.Inc {
				continue
			}
			c := Change{Kind: Left, Member: memberOf(m), Epoch: to.Epoch}
			if d := to.Ended(m.PID, m.Inc); d.Failed {
				c.Kind, c.Reason = Failed, reasonOf(d.By)
			}
			if !yield(c) {
				return
			}
		}
		for _, m := range to.Members {
			for _, kind := range kindsOf(from, to, before[m.PID], m) {
				if !yield(Change{Kind: kind, Member: memberOf(m), Epoch: to.Epoch}) {
					return
				}
			}
		}
	}
}

// kindsOf says what has changed of the member m, which was old before, if it was one.
func kindsOf(from, to *roster.View, old, m roster.Member) (kinds []ChangeKind) {
	was, is := from.Suspects[m.PID] == m.Inc, to.Suspects[m.PID] == m.Inc
	if old.Inc != m.Inc {
		kinds, was = append(kinds, Joined), false
	} else if !maps.Equal(old.Meta, m.Meta) {
		kinds = append(kinds, Updated)
	}
	switch {
	case is && !was:
		kinds = append(kinds, Suspected)
	case was && !is:
		kinds = append(kinds, Alive)
	}
	return kinds
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

package balance

import (
	"context"
	"iter"
	"maps"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// A Change is one step from one view of a group to the next.
type Change struct {
	Kind fabric.ChangeKind
	// Member is the one it is about, with its place as of the view; that of Left and
	// Failed as of the view before. Synced has none.
	Member Placed
	Epoch  uint64
	Reason fabric.Reason // of Failed
}

// Changes reports the members of the group, as [fabric.Node.Changes] does those of the
// fabric: first each that is present as Joined, then Synced, then every change in the
// order of the views, each with the epoch of its view and the incarnation of its member.
// Updated means that the member asks for something else, or has another Standing; that
// only its indices moved, because others came or went, is no change.
//
// Of the member itself, Stale says that its Share has become so, and Alive that it no
// longer is; if it loses its indices instead, Shares tells. It is about the group as the
// fabric's view has it: a crash that was found by evidence is Failed before the lease has
// run out, though in a strict mode nobody has the indices until then, and the member
// stands in the view without asking for any, Updated, until then.
//
// A reader that is slow may miss what came and went between, never a final state. The
// iteration ends, with an error, with ctx or when the group does; and when the loop is
// left.
func (g *Group) Changes(ctx context.Context) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		nobody := &scene{view: &roster.View{}}
		told := g.look(nobody)
		if !nobody.lead(told, yield) || !yield(Change{Kind: fabric.Synced, Epoch: told.view.Epoch}, nil) {
			return
		}
		for stale := false; ; {
			st := g.state.Load()
			if st.ended != nil {
				yield(Change{}, st.ended)
				return
			}
			next := g.look(told)
			if !told.lead(next, yield) {
				return
			}
			told = next
			if now := st.share.Stale; now != stale {
				stale = now
				if c, ok := told.aging(st); ok && !yield(c, nil) {
					return
				}
			}
			if err := told.wait(ctx, st); err != nil {
				yield(Change{}, err)
				return
			}
		}
	}
}

// lead yields what leads from s to the next scene; false if the loop was left.
func (s *scene) lead(next *scene, yield func(Change, error) bool) bool {
	if next.view == s.view {
		return true
	}
	for step := range roster.Steps(s.view, next.view, changed) {
		of := next
		if step.Kind == roster.Departed {
			of = s
		}
		if !yield(of.change(fabric.ChangeOf(step, next.view.Epoch)), nil) {
			return false
		}
	}
	return true
}

// changed: a member asks for something else, or stands otherwise.
func changed(old, m *roster.Member) bool {
	return old.Ask != m.Ask || standingOf(old) != standingOf(m)
}

// A scene is a view of the group, with those of whom the fabric suspects that they have
// ended, and what is closed when there is another.
type scene struct {
	base         *roster.View // the group's
	view         *roster.View // the same, with the suspects
	placed       map[fabric.PID]Placed
	group, nodes <-chan struct{}
}

// look returns the newest scene, which follows the one before.
func (g *Group) look(before *scene) *scene {
	m, ok := g.src.(*member)
	if !ok {
		return g.alone()
	}
	s := new(scene)
	var group, nodes *roster.View
	group, s.group = m.roster.View()
	nodes, s.nodes = m.host.Members.View()
	suspects := suspects(group, nodes, before.view.Suspects)
	if group == before.base && maps.Equal(suspects, before.view.Suspects) {
		s.base, s.view, s.placed = group, before.view, before.placed
		return s
	}
	v := *group
	v.Suspects = suspects
	placed, _ := placements(string(m.node.PID()), group)
	s.base, s.view, s.placed = group, &v, byPID(placed)
	return s
}

func byPID(placed []Placed) map[fabric.PID]Placed {
	m := make(map[fabric.PID]Placed, len(placed))
	for _, p := range placed {
		m[p.PID] = p
	}
	return m
}

// alone is the scene of a static group.
func (g *Group) alone() *scene {
	st := g.state.Load()
	v := &roster.View{Epoch: st.share.Epoch}
	for _, p := range st.placed() {
		v.Members = append(v.Members, &roster.Member{Inc: 1, Ask: roster.Ask{Workers: p.Workers}})
	}
	return &scene{base: v, view: v, placed: byPID(st.placed())}
}

// suspects returns the members of a group of which there are signs that they have ended.
// Of whom there were, and who is no longer in the fabric, there are still.
func suspects(group, nodes *roster.View, before map[string]uint64) map[string]uint64 {
	if len(nodes.Suspects) == 0 && len(before) == 0 {
		return nil
	}
	now := map[string]uint64{}
	for _, m := range group.Members {
		is := nodes.Suspects[m.PID] == m.Inc
		if !is && before[m.PID] == m.Inc {
			n, here := nodes.Find(m.PID)
			is = !here || n.Inc != m.Inc
		}
		if is {
			now[m.PID] = m.Inc
		}
	}
	return now
}

// change adds the member's place.
func (s *scene) change(c fabric.Change) Change {
	return Change{Kind: c.Kind, Member: s.placed[c.Member.PID], Epoch: c.Epoch, Reason: c.Reason}
}

// aging returns the change that this member's share has become stale, or no longer is.
func (s *scene) aging(st *state) (c Change, ok bool) {
	for _, p := range s.placed {
		if p.Self && st.share.Stale {
			return Change{Kind: fabric.Stale, Member: p, Epoch: s.view.Epoch}, true
		}
		if p.Self && st.share.First >= 0 {
			return Change{Kind: fabric.Alive, Member: p, Epoch: s.view.Epoch}, true
		}
	}
	return Change{}, false
}

// wait waits until there may be another scene, or st is no longer the group's state.
func (s *scene) wait(ctx context.Context, st *state) error {
	select {
	case <-s.group:
	case <-s.nodes:
	case <-st.newer:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

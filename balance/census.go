package balance

import (
	"context"
	"encoding/json"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// sweep is how often a coordinator looks for wishes of incarnations that are over.
const sweep = time.Minute

// census tells who is in the group: who has a wish, and is a member of the fabric
// under the same incarnation. So liveness is decided in one place, the fabric's
// roster.
func (m *member) census(ctx context.Context, _ *roster.View, report func(roster.Count)) error {
	watch, err := m.host.Session.Bucket().Watch(ctx, groupKey(m.cfg.Group, "*"))
	if err != nil {
		return err
	}
	defer watch.Close()
	ticker := time.NewTicker(sweep)
	defer ticker.Stop()
	wishes := map[string]wish{}
	revs := map[string]uint64{}
	synced := false
	for {
		fabric, changed := m.host.Members.View()
		if synced {
			report(roster.Count{Members: standing(wishes, fabric), Failed: func(g roster.Member) bool { return fabric.Failed(g.PID, g.Inc) }})
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-ticker.C:
			m.sweep(ctx, wishes, revs, fabric)
		case <-watch.Changed():
			var entries []kv.Entry
			entries, synced = watch.Take()
			for _, e := range entries {
				revs[e.Key] = e.Rev
				if w, ok := parseWish(e); ok {
					wishes[e.Key] = w
				} else {
					delete(wishes, e.Key)
				}
			}
		}
	}
}

// parseWish reads a wish; it is not ok if there is none, or it is not ours.
func parseWish(e kv.Entry) (w wish, ok bool) {
	err := json.Unmarshal(e.Value, &w)
	return w, err == nil && w.Key == e.Key && !w.Gone && w.Inc != 0
}

// standing returns the group's members.
func standing(wishes map[string]wish, fabric *roster.View) []roster.Member {
	here := make(map[string]uint64, len(fabric.Members))
	for _, m := range fabric.Members {
		here[m.PID] = m.Inc
	}
	var members []roster.Member
	for _, w := range wishes {
		if here[w.PID] == w.Inc {
			members = append(members, roster.Member{PID: w.PID, Inc: w.Inc, Ask: roster.Ask{Workers: w.Workers, Passive: w.Passive}})
		}
	}
	return members
}

// sweep lets the wishes of incarnations that are over expire.
func (m *member) sweep(ctx context.Context, wishes map[string]wish, revs map[string]uint64, fabric *roster.View) {
	for key, w := range wishes {
		if f, ok := fabric.Find(w.PID); ok && f.Inc == w.Inc {
			continue
		}
		if over, err := m.host.Session.IsOver(ctx, w.PID, w.Inc); err != nil || !over {
			continue
		}
		w.Gone = true
		value, err := json.Marshal(w)
		if err != nil {
			continue
		}
		_, err = m.host.Session.Bucket().Put(ctx, kv.Write{Key: key, Value: value, GuardRev: revs[key], TTL: keepGone})
		if err != nil {
			m.cfg.Logger.Debug("old wish kept", "group", m.cfg.Group, "pid", w.PID, "err", err)
		}
	}
}

package balance

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/roster"
	"github.com/natsfabric/natsfabric/internal/token"
)

// sweep is how often a coordinator looks for wishes of incarnations that are over.
const sweep = time.Minute

// census tells who is in the group: who has a wish, and is a member of the fabric
// under the same incarnation. So liveness is decided in one place, the fabric's
// roster.
func (m *member) census(ctx context.Context, before *roster.View, report func(roster.Count)) error {
	watch, err := m.host.Session.Bucket().Watch(ctx, groupKey(m.cfg.Group, "*"))
	if err != nil {
		return err
	}
	defer watch.Close()
	evictions, err := m.host.Session.Bucket().Watch(ctx, evictionKey(m.cfg.Group, "*"))
	if err != nil {
		return err
	}
	defer evictions.Close()
	ticker := time.NewTicker(sweep)
	defer ticker.Stop()
	swept := make(chan struct{}, 1) // capacity 1: full while no sweep is under way
	swept <- struct{}{}
	defer func() { <-swept }()
	select {
	case <-m.started: // m.roster is there
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	c := counter{m: m, before: before, wishes: map[string]wish{}, revs: map[string]uint64{}, away: map[string]time.Time{}, over: map[identity]bool{}, evicted: map[string]eviction{}}
	wishesRead, evictionsRead := false, false
	for {
		fabric, changed := m.host.Members.View()
		timer := time.NewTimer(time.Hour)
		if wishesRead && evictionsRead {
			again, count := c.count(ctx, fabric, c.view(), time.Now())
			report(count)
			timer.Reset(again)
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-changed:
		case <-timer.C:
		case <-ticker.C:
			strays := c.forget(fabric)
			select {
			case <-swept:
				go func() { m.sweep(ctx, strays); swept <- struct{}{} }()
			default: // the last one still goes on
			}
		case <-watch.Changed():
			var entries []kv.Entry
			entries, wishesRead = watch.Take()
			for _, e := range entries {
				c.take(e)
			}
		case <-evictions.Changed():
			var entries []kv.Entry
			entries, evictionsRead = evictions.Take()
			for _, e := range entries {
				if x, ok := parseEviction(e); ok {
					c.evicted[x.PID] = x
				}
			}
		}
		timer.Stop()
	}
}

// A counter is what a coordinator knows of its group.
type counter struct {
	m       *member
	before  *roster.View
	wishes  map[string]wish // by key
	revs    map[string]uint64
	away    map[string]time.Time   // until when a place is kept, by PID
	over    map[identity]bool      // memberships whose incarnation was read to be over
	since   map[identity]time.Time // when those who are there were seen first
	evicted map[string]eviction    // the newest, by PID
	influx  influx
}

// A stray is a wish whose incarnation is not in the fabric, under its revision.
type stray struct {
	wish
	rev uint64
}

// take takes a changed wish.
func (c *counter) take(e kv.Entry) {
	c.revs[e.Key] = e.Rev
	if w, ok := parseWish(e); ok {
		c.wishes[e.Key] = w
	} else {
		delete(c.wishes, e.Key)
	}
}

// parseWish reads a wish; it is not ok if there is none, or it is not ours.
func parseWish(e kv.Entry) (w wish, ok bool) {
	err := json.Unmarshal(e.Value, &w)
	// A member may write its own wish only: one that names another is nobody's.
	return w, err == nil && w.Key == e.Key && strings.HasSuffix(w.Key, "."+w.PID) && w.Inc != 0 &&
		len(w.Zone) <= token.MaxLen && len(w.Kind) <= token.MaxLen
}

func (w wish) identity() identity { return identity{w.PID, w.Inc, w.Stay} }

// count returns the group's members, those of fabric with a wish and those of view whose
// place is kept, and when to count again.
func (c *counter) count(ctx context.Context, fabric, view *roster.View, now time.Time) (again time.Duration, count roster.Count) {
	again = time.Hour
	here := make(map[string]uint64, len(fabric.Members))
	for _, m := range fabric.Members {
		here[m.PID] = m.Inc
	}
	p := poll{
		acked: map[identity]uint64{}, ended: map[identity]bool{}, budget: c.m.cfg.budget, failed: failedIn(fabric),
		kept: map[identity]bool{}, bound: c.m.cfg.Probation,
	}
	past := pastOf(view)
	var members []*roster.Member
	standing := map[string]identity{}
	for _, w := range c.wishes {
		p.acked[w.identity()] = w.Acked
		if here[w.PID] == w.Inc && !w.Gone {
			m := &roster.Member{PID: w.PID, Inc: w.Inc, Ask: w.Ask}
			c.evict(m, w, past)
			members = append(members, m)
			standing[w.PID] = w.identity()
			delete(c.away, w.PID)
		}
	}
	p.up = c.seen(standing, now)
	c.influx.see(fabric, now)
	coming, until := c.influx.coming(now, func(pid string) bool { _, in := standing[pid]; return in })
	strict := parseKind(view.Kind).strict()
	for _, o := range view.Members {
		id, stands := standing[o.PID]
		if strict && !(stands && id == identityOf(o)) {
			if c.ended(ctx, o) {
				p.ended[identityOf(o)] = true
			} else {
				again = min(again, time.Second)
			}
		}
		if stands {
			if id.inc != o.Inc && c.wishes[groupKey(c.m.cfg.Group, o.PID)].RejoinMS > 0 {
				p.kept[identityOf(o)] = true
			}
			continue
		}
		if left := c.kept(o, now); left > 0 {
			m := *o
			m.Given = roster.Given{Away: true}
			c.evict(&m, c.wishes[groupKey(c.m.cfg.Group, o.PID)], past)
			members = append(members, &m)
			again = min(again, left)
		}
	}
	for _, m := range members {
		if wait := p.patience(p.strikes(past, m), p.up[identityOf(m)]); wait > 0 {
			again = min(again, wait)
		}
	}
	return again, roster.Count{Members: members, Coming: coming, Until: until, Plan: p.plan, Ended: p.depart}
}

// seen returns for how long each of the memberships has been there without a break.
func (c *counter) seen(standing map[string]identity, now time.Time) map[identity]time.Duration {
	since, up := map[identity]time.Time{}, map[identity]time.Duration{}
	for _, id := range standing {
		first, known := c.since[id]
		if !known {
			first = now
		}
		since[id], up[id] = first, now.Sub(first)
	}
	c.since = since
	return up
}

// failedIn returns what tells whether a member failed: not if its node is in the fabric
// still, so that it left the group alone, and else by what became of that.
func failedIn(fabric *roster.View) func(*roster.Member) (bool, roster.Sign) {
	return func(m *roster.Member) (bool, roster.Sign) {
		if f, here := fabric.Find(m.PID); here && f.Inc == m.Inc {
			return false, 0
		}
		d := fabric.Ended(m.PID, m.Inc)
		return d.Failed, d.By
	}
}

// view returns the newest view: the one that the coordinator began with, or one since.
func (c *counter) view() *roster.View {
	v, _ := c.m.roster.View()
	if v.Token < c.before.Token || v.Token == c.before.Token && v.Epoch < c.before.Epoch {
		return c.before
	}
	return v
}

// kept returns for how long the place of a member that is not there is to be kept.
func (c *counter) kept(o *roster.Member, now time.Time) time.Duration {
	w, known := c.wishes[groupKey(c.m.cfg.Group, o.PID)]
	if !known || w.Inc != o.Inc || w.RejoinMS <= 0 {
		return 0
	}
	until, begun := c.away[o.PID]
	if !begun {
		until = now.Add(w.rejoin())
		c.away[o.PID] = until
	}
	return until.Sub(now)
}

func (w wish) rejoin() time.Duration {
	return min(time.Duration(w.RejoinMS)*time.Millisecond, MaxRejoin)
}

// ended reports whether a membership is over for good: by its own word, that it has
// left or has joined again, or by the record that decides whether its incarnation is.
func (c *counter) ended(ctx context.Context, o *roster.Member) bool {
	w, known := c.wishes[groupKey(c.m.cfg.Group, o.PID)]
	if known && w.Inc == o.Inc && (w.Gone && w.Stay == o.Stay || w.Stay > o.Stay) {
		return true
	}
	id := identityOf(o)
	if !c.over[id] {
		over, err := c.m.host.Session.IsOver(ctx, o.PID, o.Inc)
		c.over[id] = err == nil && over
	}
	return c.over[id]
}

// forget forgets the wishes that say that they are over, and returns those of which it is
// to be asked.
func (c *counter) forget(fabric *roster.View) (list []stray) {
	view := c.view()
	for key, w := range c.wishes {
		if _, placed := view.Find(w.PID); w.Gone && !placed {
			delete(c.wishes, key)
		}
		if f, ok := fabric.Find(w.PID); !w.Gone && (!ok || f.Inc != w.Inc) {
			list = append(list, stray{w, c.revs[key]})
		}
	}
	return list
}

// sweep lets the wishes of incarnations that are over expire. Each takes two round trips,
// which the census does not wait for.
func (m *member) sweep(ctx context.Context, strays []stray) {
	for _, s := range strays {
		if over, err := m.host.Session.IsOver(ctx, s.PID, s.Inc); err != nil || !over {
			continue
		}
		s.Gone = true
		value, err := json.Marshal(s.wish)
		if err != nil {
			continue
		}
		_, err = m.host.Session.Bucket().Put(ctx, kv.Write{Key: s.Key, Value: value, GuardRev: s.rev, TTL: keepGone + s.rejoin()})
		if err != nil {
			m.cfg.Logger.Debug("old wish kept", "group", m.cfg.Group, "pid", s.PID, "err", err)
		}
	}
}

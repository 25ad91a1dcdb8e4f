package roster

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// Living returns the census of a fabric: every PID whose claim is held and whose
// session was seen under that incarnation. It ends the sessions whose lease ran
// out; nobody else follows them all. foreign is told of each record that is not
// the fabric's, once for each revision.
func Living(s *lease.Session, foreign func(error), logger *slog.Logger) Census {
	return func(ctx context.Context, before *View, report func(Count)) error {
		pids, err := s.Bucket().Watch(ctx, lease.PIDs)
		if err != nil {
			return err
		}
		defer pids.Close()
		sessions, err := s.Bucket().Watch(ctx, lease.Sessions)
		if err != nil {
			return err
		}
		defer sessions.Close()
		c := &living{s: s, foreign: foreign, logger: logger, before: before, people: map[string]*person{}}
		return c.run(ctx, pids, sessions, report)
	}
}

// A person is what the census knows of one PID.
type person struct {
	held    bool
	left    bool     // the incarnation that ended last left by itself
	inc     uint64   // the claim's revision
	session kv.Entry // the newest session record
	member  Member   // what it shows; Inc 0 if nothing is known
	size    int      // of member in a view
	watch   *lease.Watcher
}

type living struct {
	s       *lease.Session
	foreign func(error)
	logger  *slog.Logger
	crowded bool // the last count left members out
	before  *View
	people  map[string]*person
	next    time.Time // when the first lease may run out; the renewals only put it off
}

func (c *living) run(ctx context.Context, pids, sessions *kv.Watch, report func(Count)) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	reported := false
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		case <-pids.Changed():
		case <-sessions.Changed():
		}
		claims, claimsRead := pids.Take()
		changed := c.claims(claims)
		seen, sessionsRead := sessions.Take()
		changed = c.sessions(seen) || changed
		if !claimsRead || !sessionsRead {
			continue
		}
		if changed || !reported {
			reported = true
			report(Count{Members: c.members(), Failed: c.failed()})
		}
		if !time.Now().Before(c.next) {
			c.next = time.Now().Add(c.challenge(ctx))
		}
		timer.Reset(time.Until(c.next))
	}
}

func (c *living) of(pid string) *person {
	p, ok := c.people[pid]
	if !ok {
		p = &person{session: kv.Entry{Key: lease.KeySession(pid), Seen: time.Now()}}
		c.people[pid] = p
	}
	return p
}

// claims takes changed PID claims.
func (c *living) claims(entries []kv.Entry) (changed bool) {
	for _, e := range entries {
		r, err := lease.ParsePID(e)
		if err != nil { // foreign or absent: that neither grants nor revokes
			c.report(e, err)
			pid := strings.TrimPrefix(e.Key, lease.KeyPID(""))
			if p, ok := c.people[pid]; ok && e.Value == nil && !p.held {
				delete(c.people, pid)
			}
			continue
		}
		p := c.of(r.PID)
		p.held, p.left, p.inc, p.watch = r.Held(), r.Left(), e.Rev, nil
		if p.held {
			c.next = time.Time{}
			p.watch = c.s.Watcher(r.PID, e.Rev)
			p.watch.See(p.session)
			// The session of a member may be missing at the moment: no proof either.
			if m, ok := c.before.Find(r.PID); ok && m.Inc == e.Rev && p.member.Inc == 0 {
				p.member, p.size = m, m.size()
			}
		}
		changed = true
	}
	return changed
}

// sessions takes changed sessions.
func (c *living) sessions(entries []kv.Entry) (changed bool) {
	for _, e := range entries {
		p := c.of(strings.TrimPrefix(e.Key, lease.KeySession("")))
		p.session = e
		if p.watch != nil {
			p.watch.See(e)
		}
		r, err := lease.ParseSession(e)
		if err != nil {
			c.report(e, err)
			continue
		}
		m := Member{PID: r.PID, Inc: r.Inc, Host: r.Host, Since: r.Since, Meta: r.Meta}
		if !p.member.equal(m) {
			p.member, p.size = m, m.size()
			changed = true
		}
	}
	return changed
}

// report tells of a record that is there and not the fabric's.
func (c *living) report(e kv.Entry, err error) {
	if e.Value != nil {
		c.foreign(err)
	}
}

// members returns everyone who is here, or of too many those who came first: they
// keep their place, whoever comes.
func (c *living) members() (list []Member) {
	total := 0
	for _, p := range c.people {
		if p.held && p.member.Inc == p.inc {
			list = append(list, p.member)
			total += p.size
		}
	}
	crowded := total > maxMembers
	if crowded {
		slices.SortFunc(list, func(a, b Member) int { return cmp.Compare(a.Inc, b.Inc) })
		all := len(list)
		for total, list = 0, list[:0:all]; len(list) < all; {
			next := list[:len(list)+1]
			if total += c.people[next[len(list)].PID].size; total > maxMembers {
				break
			}
			list = next
		}
		if !c.crowded {
			c.logger.Warn("more members than a view holds: those who came last are left out", "members", all, "kept", len(list))
		}
	}
	c.crowded = crowded
	return list
}

// failed returns what tells a failure from a leave: a claim that says "left".
func (c *living) failed() func(Member) bool {
	left := make(map[string]bool, len(c.people))
	for pid, p := range c.people {
		left[pid] = p.left
	}
	return func(m Member) bool { return !left[m.PID] }
}

// challenge ends whoever's time has come, and returns when to look again.
func (c *living) challenge(ctx context.Context) time.Duration {
	next := time.Hour
	for _, p := range c.people {
		if p.watch == nil {
			continue
		}
		over, wait := p.watch.Challenge(ctx)
		if over {
			p.watch = nil // the claim's new record is on its way
			continue
		}
		next = min(next, wait)
	}
	return next
}

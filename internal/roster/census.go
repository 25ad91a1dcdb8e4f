package roster

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// A Survey is what the census of a fabric goes by.
type Survey struct {
	Session *lease.Session
	// Foreign is told of each record that is not the fabric's, once for each revision.
	Foreign func(error)
	// Evidence has reports of members that may have ended; nil: leases alone count.
	Evidence *Evidence
	Probe    Probe // required with Evidence
	Logger   *slog.Logger
}

// Living returns the census of a fabric: every PID whose claim is held and whose
// session was seen under that incarnation, but for those that evidence says have
// failed. It ends the sessions whose lease ran out; nobody else follows them all.
// Evidence ends none: who is held to have failed keeps all that its lease gives it, and
// is counted again when it renews that and is found, or renews it twice.
func Living(v Survey) Census {
	return func(ctx context.Context, before *View, report func(Count)) error {
		pids, err := v.Session.Bucket().Watch(ctx, lease.PIDs)
		if err != nil {
			return err
		}
		defer pids.Close()
		sessions, err := v.Session.Bucket().Watch(ctx, lease.Sessions)
		if err != nil {
			return err
		}
		defer sessions.Close()
		c := &living{Survey: v, before: before, people: map[string]*person{}, doubts: newDoubts(), answers: make(chan answer)}
		if v.Evidence == nil {
			return c.run(ctx, pids, sessions, &desk{}, report)
		}
		desk, done, err := v.Evidence.open()
		if err != nil {
			return err
		}
		defer done()
		return c.run(ctx, pids, sessions, desk, report)
	}
}

// A person is what the census knows of one PID.
type person struct {
	held    bool
	left    bool          // the incarnation that ended last left by itself
	inc     uint64        // the claim's revision
	since   time.Time     // when that was seen
	session kv.Entry      // the newest session record
	lease   time.Duration // that it states; 0 if nothing is known
	member  *Member       // what it shows; Inc 0 if nothing is known
	size    int           // of member in a view
	watch   *lease.Watcher
}

type living struct {
	Survey
	crowded bool // the last count left members out
	here    int  // how many there were in the last count, with those who failed by evidence
	before  *View
	people  map[string]*person
	next    time.Time // when the first lease may run out; the renewals only put it off

	doubts  *doubts
	asking  sync.WaitGroup
	answers chan answer
}

// An answer is what came of asking for an incarnation.
type answer struct {
	incarnation
	finding finding
}

func (c *living) run(ctx context.Context, pids, sessions *kv.Watch, desk *desk, report func(Count)) error {
	defer c.asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	reported, changed := false, false
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		case <-pids.Changed():
		case <-sessions.Changed():
		case r := <-desk.reports:
			c.consider(r)
		case <-desk.reconnected:
			c.doubts.hold(time.Now(), reconnecting)
		case a := <-c.answers:
			changed = c.conclude(a) || changed
		}
		claims, claimsRead := pids.Take()
		changed = c.claims(claims) || changed
		seen, sessionsRead := sessions.Take()
		changed = c.sessions(seen) || changed
		if !claimsRead || !sessionsRead {
			continue
		}
		if changed || !reported {
			reported, changed = true, false
			coming, until := c.coming(time.Now())
			report(Count{Members: c.members(), Coming: coming, Until: until, Ended: c.ended(), Suspects: c.doubts.suspects()})
		}
		if !time.Now().Before(c.next) {
			c.next = time.Now().Add(c.challenge(ctx))
		}
		timer.Reset(time.Until(c.inquire(ctx)))
	}
}

// consider takes a report, if it is about somebody who is here.
func (c *living) consider(r report) {
	if p := c.people[r.pid]; p != nil && p.held && p.inc == r.inc && r.pid != c.Session.PID() {
		c.doubts.see(time.Now(), r.incarnation, r.sign, c.here)
	}
}

// inquire asks for those whose turn it is, and returns when something is to be done
// again.
func (c *living) inquire(ctx context.Context) time.Time {
	ask, next := c.doubts.due(time.Now())
	for _, id := range ask {
		c.asking.Go(func() {
			a := answer{id, c.Probe.ask(ctx, id.pid)}
			select {
			case c.answers <- a:
			case <-ctx.Done():
			}
		})
	}
	if next.IsZero() || c.next.Before(next) {
		return c.next
	}
	return next
}

// conclude takes the outcome of asking, and reports whether it changes anything.
func (c *living) conclude(a answer) (changed bool) {
	changed = c.doubts.found(time.Now(), a.incarnation, a.finding)
	if s := c.doubts.failed(a.incarnation); changed && s != 0 {
		c.Logger.Info("a member failed before its lease ran out", "pid", a.pid, "rev", a.inc, "sign", s)
	}
	return changed
}

func (c *living) of(pid string) *person {
	p, ok := c.people[pid]
	if !ok {
		p = &person{session: kv.Entry{Key: lease.KeySession(pid), Seen: time.Now()}, member: &absent}
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
		p.held, p.left, p.inc, p.since, p.watch = r.Held(), r.Left(), e.Rev, e.Seen, nil
		c.doubts.forget(r.PID, e.Rev)
		if p.held {
			if _, here := c.before.Find(r.PID); !here && c.Evidence != nil {
				if d := c.before.Ended(r.PID, e.Rev); d.Failed && d.By != 0 {
					c.doubts.adopt(incarnation{r.PID, e.Rev}, d.By)
				}
			}
			c.next = time.Time{}
			p.watch = c.Session.Watcher(r.PID, e.Rev)
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
		anew := p.session.Rev != 0 && e.Rev > p.session.Rev // not the first that was read
		p.session = e
		if p.watch != nil {
			p.watch.See(e)
		}
		r, err := lease.ParseSession(e)
		if err != nil {
			c.report(e, err)
			p.lease = 0
			continue
		}
		if p.member.Inc != r.Inc || p.lease == 0 || r.Lease() < p.lease { // no mere renewal
			c.next = time.Time{}
		}
		p.lease = r.Lease()
		if anew && c.doubts.renewed(time.Now(), incarnation{r.PID, r.Inc}) {
			changed = true
		}
		m := &Member{PID: r.PID, Inc: r.Inc, Host: r.Host, Since: r.Since, Meta: r.Meta}
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
		c.Foreign(err)
	}
}

// members returns everyone who is here, or of too many those who came first: they
// keep their place, whoever comes.
func (c *living) members() (list []*Member) {
	total := 0
	c.here = 0
	for _, p := range c.people {
		if !p.held || p.member.Inc != p.inc {
			continue
		}
		c.here++
		if c.doubts.failed(incarnation{p.member.PID, p.inc}) == 0 {
			list = append(list, p.member)
			total += p.size
		}
	}
	crowded := total > maxMembers
	if crowded {
		slices.SortFunc(list, func(a, b *Member) int { return cmp.Compare(a.Inc, b.Inc) })
		all := len(list)
		for total, list = 0, list[:0:all]; len(list) < all; {
			next := list[:len(list)+1]
			if total += c.people[next[len(list)].PID].size; total > maxMembers {
				break
			}
			list = next
		}
		if !c.crowded {
			c.Logger.Warn("more members than a view holds: those who came last are left out", "members", all, "kept", len(list))
		}
	}
	c.crowded = crowded
	return list
}

// coming returns how many claimed a PID of late and are not here yet, for want of their
// session, and until when the last of them is likely to be.
func (c *living) coming(now time.Time) (n int, until time.Time) {
	for _, p := range c.people {
		if by := p.since.Add(Soon); p.held && p.member.Inc != p.inc && now.Before(by) {
			n++
			if by.After(until) {
				until = by
			}
		}
	}
	return n, until
}

// ended returns what tells how a member ended: it left if its claim says so, and else
// failed.
func (c *living) ended() func(*Member) Departure {
	left := make(map[string]bool, len(c.people))
	signs := make(map[incarnation]Sign)
	for pid, p := range c.people {
		left[pid] = p.left
		if id := (incarnation{pid, p.inc}); c.doubts.failed(id) != 0 {
			signs[id] = c.doubts.failed(id)
		}
	}
	return func(m *Member) Departure {
		by := signs[incarnation{m.PID, m.Inc}]
		return Departure{PID: m.PID, Inc: m.Inc, Failed: by != 0 || !left[m.PID], By: by}
	}
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

package election

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// standbys is how many of the queue watch the leader and have a rank; the others wait
// until those had their chance.
const standbys = 8

// unknownFor is how long a candidate may stand without being in the members' view,
// which follows the claims.
const unknownFor = 10 * time.Second

// A chair is the queue of those who stand for an election, at its leader.
type chair struct {
	o    *office
	term *Term

	mu    sync.Mutex // guards queue
	queue map[string]*standing
}

// A standing is one candidate's place in a queue.
type standing struct {
	pid      string
	inc      uint64 // under which it stands
	priority int
	heard    time.Time
	told     int // the rank it was told; -1: none yet
}

// enter takes a candidate in, and tells everyone whose rank that changes. One that
// asks for it and has a higher priority than the leader's is handed over to.
func (c *chair) enter(pid string, m memo) {
	c.mu.Lock()
	s := c.queue[pid]
	if s == nil {
		s = &standing{pid: pid}
		c.queue[pid] = s
	}
	s.inc, s.priority, s.heard, s.told = m.Inc, m.Priority, time.Now(), -1 // it asks, so it is told
	c.rank()
	stands := c.queue[pid] != nil
	c.mu.Unlock()
	if stands && m.Preempt && m.Priority > c.term.e.cfg.Priority {
		c.term.ask(pid)
	}
}

func (c *chair) remove(pid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.queue, pid)
	c.rank()
}

// has reports whether pid stands.
func (c *chair) has(pid string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prune()
	return c.queue[pid] != nil
}

// first returns who comes next.
func (c *chair) first() (pid string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prune()
	order := c.order()
	if len(order) == 0 {
		return "", false
	}
	return order[0].pid, true
}

// prune removes who is no longer a member, or under another incarnation. The caller
// holds c.mu.
func (c *chair) prune() {
	v, _ := c.o.host.Members.View()
	for pid, s := range c.queue {
		m, ok := v.Find(pid)
		if ok && m.Inc > s.inc || (!ok || m.Inc < s.inc) && time.Since(s.heard) > unknownFor {
			delete(c.queue, pid)
		}
	}
}

// order sorts the queue: the higher priority first, then the longer in the fabric.
func (c *chair) order() []*standing {
	order := make([]*standing, 0, len(c.queue))
	for _, s := range c.queue {
		order = append(order, s)
	}
	slices.SortFunc(order, func(a, b *standing) int {
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.inc, b.inc), cmp.Compare(a.pid, b.pid))
	})
	return order
}

// rank tells everyone whose rank has changed. The caller holds c.mu.
func (c *chair) rank() {
	c.prune()
	for i, s := range c.order() {
		rank := min(i, standbys)
		if s.told == rank {
			continue
		}
		s.told = rank
		c.o.tell(s.pid, memo{Op: opRank, Name: c.term.e.cfg.Name, Token: c.term.Token(), Inc: s.inc, Rank: rank, Of: len(c.queue)})
	}
}

package balance

import (
	"slices"

	"github.com/natsfabric/natsfabric/internal/roster"
)

// start lets the process take its PID.
func (p *simProc) start() {
	p.life++
	p.inc, p.trusted, p.lead, p.busy, p.acking = 0, 0, 0, false, 0
	p.keeper, p.token, p.vigil = keeper{}, 0, map[string]simVigil{}
	p.claims, p.wishes = map[string]simClaim{}, map[string]simWish{}
	p.workers = p.s.r.IntN(4)
	p.take()
}

// take takes the PID when it is free, or when its former life's lease has run out.
func (p *simProc) take() {
	s := p.s
	var old simClaim
	p.do(50_000, func() {
		if p.inc == 0 {
			p.take()
		}
	})
	p.ask(func() bool { old = s.claims[p.pid]; return true }, func(bool) {
		if p.inc != 0 {
			return
		}
		if old.held {
			p.watch(p.pid, old.rev)
			return
		}
		var inc uint64
		p.ask(func() bool {
			if s.claims[p.pid].rev != old.rev {
				return false
			}
			s.rev++
			inc = s.rev
			s.claims[p.pid] = simClaim{rev: inc, held: true}
			return true
		}, func(ok bool) {
			if !ok || p.inc != 0 {
				return
			}
			p.inc = inc
			s.stays++
			p.stay = s.stays
			p.keeper = keeper{id: identity{p.pid, p.inc, p.stay}}
			p.renew()
			p.wish(false)
			p.follow()
			p.look()
			p.live()
		})
	})
}

// renew renews the session, over and over.
func (p *simProc) renew() {
	s, inc, life := p.s, p.inc, p.life
	sent := s.now
	p.do(simRenew-s.r.Int64N(simRenew/10), func() {
		if p.inc == inc {
			p.renew()
		}
	})
	over := false
	p.ask(func() bool {
		if s.claims[p.pid].rev != inc {
			over = true
			if !s.broken.renewal {
				return false
			}
		}
		s.rev++
		s.alive[p.pid] = simSession{s.rev, inc}
		for _, o := range s.procs { // the feed
			if o.lead != 0 && o != p && o.cut <= s.now {
				o.do(s.delay(), func() { o.watch(p.pid, inc) })
			}
		}
		return true
	}, func(ok bool) {
		switch {
		case p.life != life || p.inc != inc:
		case !ok && over:
			p.start() // the incarnation is over: a new one, that knows nothing
		case s.now < p.trusted || p.trusted == 0 || s.claims[p.pid].rev == inc || s.broken.renewal:
			p.trusted = max(p.trusted, sent+int64(s.trust()/p.rate))
			s.check(p)
		}
	})
}

// wish writes what the member wants and has acknowledged.
func (p *simProc) wish(gone bool) {
	s, w := p.s, simWish{0, p.keeper.id, max(p.acking, p.keeper.acked), p.workers, gone}
	p.ask(func() bool {
		if s.claims[p.pid].rev != w.id.inc || s.wishes[p.pid].id == w.id && (s.wishes[p.pid].acked > w.acked || s.wishes[p.pid].gone) {
			return s.claims[p.pid].rev == w.id.inc
		}
		s.rev++
		w.rev = s.rev
		s.wishes[p.pid] = w
		return true
	}, func(ok bool) {
		if ok && w.id == p.keeper.id {
			p.keeper.acknowledged(w.acked)
		}
	})
}

// follow reads the view, over and over.
func (p *simProc) follow() {
	s, inc := p.s, p.inc
	p.do(simFollow/2+s.r.Int64N(simFollow), func() {
		if p.inc == inc {
			p.follow()
		}
	})
	var v *roster.View
	p.ask(func() bool { v = s.view; return true }, func(bool) { p.see(v) })
}

// see takes a view, however old.
func (p *simProc) see(v *roster.View) {
	if v == nil || p.inc == 0 || v.Token < p.token || v.Token == p.token && v.Epoch < p.keeper.epoch {
		return
	}
	p.token = v.Token
	if self, ok := v.Find(p.pid); ok && p.s.broken.incarnation {
		p.keeper.id = identityOf(self)
	}
	p.keeper.see(v)
	p.keeper.fenced(p.keeper.wanted())
	p.s.check(p)
	p.stop()
}

// stop acknowledges what was taken, some time after it was seen.
func (p *simProc) stop() {
	epoch, inc := p.keeper.due(), p.inc
	if epoch == 0 {
		return
	}
	p.do(p.s.r.Int64N(30_000), func() {
		if p.inc == inc && epoch > p.keeper.acked {
			p.acking = max(p.acking, epoch)
			p.wish(false)
			p.do(100_000, p.stop) // until it is known to be stored
		}
	})
}

// live changes its mind now and then.
func (p *simProc) live() {
	s, inc := p.s, p.inc
	p.do(s.r.Int64N(250_000), func() {
		if p.inc != inc {
			return
		}
		if !s.calm {
			switch s.r.IntN(8) {
			case 0: // it leaves the group, having stopped, and joins again
				p.keeper.held = ""
				p.wish(true)
				s.stays++
				p.stay = s.stays
				p.acking = 0
				p.keeper = keeper{id: identity{p.pid, p.inc, p.stay}}
				p.do(s.r.Int64N(20_000), func() { p.wish(false) })
			default:
				p.workers = s.r.IntN(4)
			}
		}
		p.wish(false) // also what was lost
		p.live()
	})
}

// watch takes note of the session of pid, and ends its incarnation when it has not
// changed for long enough.
func (p *simProc) watch(pid string, inc uint64) {
	s := p.s
	rev := max(s.alive[pid].rev, inc)
	if p.vigil[pid].rev != rev {
		p.vigil[pid] = simVigil{rev, s.now}
		p.do(int64(s.patience()), func() { p.challenge(pid, inc, rev) })
	} else if float64(s.now-p.vigil[pid].since)*p.rate > s.patience()+50_000 {
		p.challenge(pid, inc, rev) // that was lost
	}
}

func (p *simProc) challenge(pid string, inc, rev uint64) {
	s := p.s
	if p.vigil[pid].rev != rev {
		return
	}
	p.ask(func() bool {
		if max(s.alive[pid].rev, inc) != rev || s.claims[pid].rev != inc {
			return false
		}
		s.rev++
		s.claims[pid] = simClaim{rev: s.rev}
		return true
	}, func(bool) {
		if p.lead != 0 {
			p.coordinate()
		}
	})
}

// look is what a coordinator, and who waits to be one, does over and over.
func (p *simProc) look() {
	s, inc := p.s, p.inc
	p.do(simLook/2+s.r.Int64N(simLook), func() {
		if p.inc == inc {
			p.look()
		}
	})
	var chair simClaim
	p.ask(func() bool { chair = s.chair; return true }, func(bool) {
		switch {
		case chair.held && chair.pid == p.pid && chair.inc == p.inc && s.now < p.trusted:
			p.lead = chair.rev
			p.coordinate()
		case p.inc == 0:
		default:
			p.lead = 0
			p.stand(chair)
		}
	})
}

// stand takes the chair once its holder is over.
func (p *simProc) stand(chair simClaim) {
	s := p.s
	var c simClaim
	p.ask(func() bool { c = s.claims[chair.pid]; return true }, func(bool) {
		if chair.held && c.rev == chair.inc {
			p.watch(chair.pid, chair.inc)
			return
		}
		inc := p.inc
		p.ask(func() bool {
			if s.chair.rev != chair.rev {
				return false
			}
			s.rev++
			s.chair = simClaim{s.rev, true, p.pid, inc}
			return true
		}, func(bool) {})
	})
}

// coordinate reads everything, each at another moment, ends whoever's lease has run
// out, and writes the next view by what it knows by then.
func (p *simProc) coordinate() {
	s := p.s
	for _, o := range s.procs {
		pid := o.pid
		var c simClaim
		p.ask(func() bool { c = s.claims[pid]; return true }, func(bool) {
			if known, ok := p.claims[pid]; !ok || c.rev > known.rev {
				p.claims[pid] = c
			}
			if c = p.claims[pid]; c.held && pid != p.pid {
				p.watch(pid, c.rev)
			}
		})
		var w simWish
		p.ask(func() bool { w = s.wishes[pid]; return true }, func(bool) {
			if known, ok := p.wishes[pid]; !ok || w.rev > known.rev {
				p.wishes[pid] = w
			}
		})
	}
	var base *roster.View
	var baseAt uint64
	p.ask(func() bool { base, baseAt = s.view, s.viewAt; return true }, func(bool) {
		p.do(1000, func() {
			if base.Token <= p.lead && p.lead != 0 && !p.busy && len(p.claims) == len(s.procs) && len(p.wishes) == len(s.procs) {
				p.write(base, baseAt)
			}
		})
	})
}

// census is balance's, with what was read.
func (s *sim) census(base *roster.View, claims map[string]simClaim, wishes map[string]simWish) *roster.View {
	next := &roster.View{Epoch: base.Epoch + 1}
	po := poll{acked: map[identity]uint64{}, ended: map[identity]bool{}}
	for pid, w := range wishes {
		po.acked[w.id] = w.acked
		if c := claims[pid]; w.id.inc != 0 && !w.gone && c.held && c.rev == w.id.inc {
			next.Members = append(next.Members, &roster.Member{PID: pid, Inc: w.id.inc, Ask: roster.Ask{Workers: w.workers, Idle: w.workers == 0, Stay: w.id.stay, Kind: s.kind}})
		}
	}
	slices.SortFunc(next.Members, func(a, b *roster.Member) int { return int(a.Inc) - int(b.Inc) })
	for _, m := range base.Members {
		w := wishes[m.PID]
		byWish := w.id.inc == m.Inc && (w.gone && w.id.stay == m.Stay || w.id.stay > m.Stay)
		if claims[m.PID].rev > m.Inc || byWish || s.broken.barrier {
			po.ended[identityOf(m)] = true
		}
		if s.broken.barrier {
			po.acked[identityOf(m)] = 1 << 60
		}
		if s.broken.incarnation && claims[m.PID].held && claims[m.PID].rev != m.Inc {
			delete(po.ended, identityOf(m))
			po.acked[identityOf(m)] = w.acked
		}
	}
	po.plan(base, next)
	return next
}

// write writes the next view, if there is one.
func (p *simProc) write(base *roster.View, at uint64) {
	s := p.s
	next := s.census(base, p.claims, p.wishes)
	if slices.EqualFunc(base.Members, next.Members, func(a, b *roster.Member) bool {
		return a.PID == b.PID && a.Inc == b.Inc && a.Ask == b.Ask && a.Given == b.Given
	}) && base.Units == next.Units {
		return
	}
	next.Token, next.PID = p.lead, p.pid
	p.crash()
	if s.now >= p.trusted {
		return
	}
	p.busy = true
	p.do(500_000, func() { p.busy = false })
	p.ask(func() bool {
		if s.viewAt != at {
			return false
		}
		s.rev++
		s.view, s.viewAt = next, s.rev
		s.totals[next.Epoch] = next.Units
		s.rebalances++
		for _, o := range s.procs { // announced; each may miss it, or hear it late
			if o.cut <= s.now && (s.calm || s.r.IntN(20) > 0) {
				o.do(s.delay(), func() { o.see(next) })
			}
		}
		return true
	}, func(ok bool) {
		p.busy = false
		p.crash()
	})
}

// crash ends the process now and then, in the middle of what it does.
func (p *simProc) crash() {
	if !p.s.calm && p.s.r.IntN(60) == 0 {
		p.start()
	}
}

package balance

import (
	"time"

	"github.com/natsfabric/natsfabric/internal/roster"
)

// Of probation, which keeps a PID that comes and goes from moving everybody's work each
// time:
//
//	                     a failure: one strike more
//	  +-----------------------------------------------------------------+
//	  v                                                                 |
//	0 to 2 strikes: admitted at once                                    |
//	3 or more:      on probation for 1, 2, 4 ... s up to the bound --> admitted
//	  ^                                                                 |
//	  +--- calm after that, or Leave: no strikes any more <-------------+
//
// All of it follows from the view, where the strikes stand, and from how long the
// coordinator has seen each member. The next coordinator has seen them for less long: a
// probation, and the way to calm, begin anew.
const (
	// flapping is the number of strikes that puts a PID on probation.
	flapping = 3
	// firstProbation is how long the first one lasts; each one more doubles it.
	firstProbation = time.Second
	// calm is for how long after its probation a member must be there to have its
	// strikes forgotten.
	calm = time.Minute
	// maxStrikes is the most that are counted.
	maxStrikes = 32
)

// probation returns for how long a PID with so many strikes is given nothing.
func (p poll) probation(strikes int) time.Duration {
	if strikes < flapping || p.bound <= 0 { // none, or it is off
		return 0
	}
	wait := firstProbation
	for n := flapping; n < strikes && wait < p.bound; n++ {
		wait *= 2
	}
	return min(wait, p.bound)
}

// A past is a view, by PID: of a thousand members each is looked for.
type past struct {
	members map[string]*roster.Member
	gone    map[string]int // the strikes of the departed
}

func pastOf(v *roster.View) past {
	h := past{make(map[string]*roster.Member, len(v.Members)), make(map[string]int, len(v.Gone))}
	for _, m := range v.Members {
		h.members[m.PID] = m
	}
	for _, d := range v.Gone {
		h.gone[d.PID] = d.Strikes // the last one counts
	}
	return h
}

// strikes returns how many strikes m begins with, or goes on with.
func (p poll) strikes(before past, m *roster.Member) int {
	switch old := before.members[m.PID]; {
	case old == nil:
		return before.gone[m.PID]
	case identityOf(old) == identityOf(m):
		return old.Strikes
	default:
		return p.depart(old).Strikes
	}
}

// depart returns how a member departed that was there. An end that changed nothing for
// anybody, because the place was kept for the next incarnation, is no strike.
func (p poll) depart(old *roster.Member) roster.Departure {
	d := roster.Departure{PID: old.PID, Inc: old.Inc}
	if p.failed == nil {
		return d
	}
	d.Failed, d.By = p.failed(old)
	switch {
	case !d.Failed || p.bound <= 0:
	case p.kept[identityOf(old)]:
		d.Strikes = old.Strikes
	default:
		d.Strikes = min(max(old.Strikes, 0)+1, maxStrikes)
	}
	return d
}

// admit says of each member of next how many strikes it has, and whether it is on
// probation. Who was admitted stays so, and so does its place. Nobody is held back when
// there is nobody else to do the work: of its own zone, where each zone does all of it.
func (p poll) admit(before, next *roster.View) {
	if p.bound <= 0 { // it is off
		for _, m := range next.Members {
			m.Strikes, m.Probation = 0, false
		}
		return
	}
	k, past := parseKind(next.Kind), pastOf(before)
	others := map[string]bool{} // by zone: somebody does the work
	for _, m := range next.Members {
		old := past.members[m.PID]
		goesOn := old != nil && (identityOf(old) == identityOf(m) || p.kept[identityOf(old)])
		up := p.up[identityOf(m)]
		m.Strikes, m.Probation = p.strikes(past, m), false
		wait := p.probation(m.Strikes)
		if up >= wait+calm {
			m.Strikes = 0
		}
		m.Probation = up < wait && (!goesOn || old.Probation)
		if m.Away { // it is not there to be admitted
			m.Probation = goesOn && old.Probation
		}
		if !m.Away && wantOf(m).granted() > 0 {
			others[k.zone(m)] = true
		}
	}
	for _, m := range next.Members {
		m.Probation = m.Probation && others[k.zone(m)]
	}
}

// patience returns after how long admit may say something else of a member, that has
// been there for up; 0 if it will not.
func (p poll) patience(strikes int, up time.Duration) time.Duration {
	wait := p.probation(strikes)
	switch {
	case strikes == 0:
		return 0
	case up < wait:
		return wait - up
	}
	return max(wait+calm-up, 0)
}

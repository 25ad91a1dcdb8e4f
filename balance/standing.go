package balance

import "github.com/natsfabric/natsfabric/internal/roster"

// A Standing says how a member stands in its group, and so why it may have no index.
type Standing uint8

const (
	// Active: it gets what it asks for.
	Active Standing = iota
	// Watching: it is passive.
	Watching
	// NotReady: by Config.NotReady, SetReady or Drain; or in a strict mode it is gone, and
	// what it had is nobody's until its lease has run out.
	NotReady
	// OnProbation: it failed too often of late, see Config.Probation.
	OnProbation
	// Away: it has gone, and its place is kept for the next incarnation, see Config.Rejoin.
	Away
	// Evicted: by [Evict].
	Evicted
	// Mismatched: it divides the work in another way, see [ErrMismatch].
	Mismatched
)

var standingNames = [...]string{
	Active: "active", Watching: "passive", NotReady: "not ready", OnProbation: "probation", Away: "away", Evicted: "evicted", Mismatched: "mismatch",
}

// String returns the standing in lower case: "active", "passive", "not ready",
// "probation", "away", "evicted" or "mismatch".
func (s Standing) String() string { return standingNames[s] }

func standingOf(m *roster.Member) Standing {
	switch {
	case m.Refused:
		return Mismatched
	case m.Away:
		return Away
	case m.Passive:
		return Watching
	case m.Evicted:
		return Evicted
	case m.Idle:
		return NotReady
	case m.Probation:
		return OnProbation
	}
	return Active
}

// empty reports whether a member that the group knows is to have nothing for now.
func empty(m *roster.Member) bool { return m.Idle || m.Evicted || m.Probation }

package election

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/natsfabric/natsfabric/internal/token"
)

// Config says which election to take part in.
type Config struct {
	// Name of the election; required. Letters, digits, '_' and '-', at most 64.
	Name string

	// Grace is how long before the claim can be another's a term's context ends:
	// the time that the leader's work has to stop. Default 0; less than half the
	// node's Lease, because a lease is renewed each three eighths of it. The larger it is,
	// the sooner a slow server ends a term.
	Grace time.Duration

	// HoldOnSuspend keeps the term when the lease runs out because the bucket takes no
	// writes: its context lives on and Valid is false, until the lease is renewed and
	// the same term goes on, or another process has ended it. For work whose every
	// effect is fenced, or which asks Valid before each. Default: the term ends.
	HoldOnSuspend bool

	// Failover says when this node, while it campaigns, takes over from a leader that
	// has died. Default [Lease].
	Failover Failover

	// Priority orders those who stand for election: when the claim is free the higher
	// comes first, and among equals the longer in the fabric. It never ends a term.
	// Default 0.
	Priority int

	// Preempt asks a leader of a lower Priority to hand over to this node while it
	// campaigns; Try asks nobody. The leader stops its work first.
	Preempt bool

	// Logger gets state changes and swallowed errors. Default: discard.
	Logger *slog.Logger
}

// A Failover is what proves to a candidate that the leader is dead.
type Failover uint8

const (
	// Lease: nothing but that its lease has run out.
	Lease Failover = iota
	// Proof: also that the kernel has seen the leader's process end, which this node,
	// on the same machine, has seen alive before. It then leads within milliseconds.
	// A leader that is stopped, cut off, or anywhere else keeps its lease. On Linux
	// only, and among processes that share their namespaces of PIDs and of time.
	//
	// What the process has started may outlive it, and what it has sent may yet
	// arrive: fence both. Not for virtual machines of which a running one was cloned.
	Proof
)

func (c Config) complete(lease time.Duration) (Config, error) {
	if err := token.Check("election", c.Name); err != nil {
		return c, err
	}
	if c.Grace < 0 || c.Grace >= lease/2 {
		return c, &ConfigError{"Grace", fmt.Sprintf("%v is not within 0 and half the lease of %v", c.Grace, lease)}
	}
	if c.Failover > Proof {
		return c, &ConfigError{"Failover", fmt.Sprintf("%d is neither Lease nor Proof", c.Failover)}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

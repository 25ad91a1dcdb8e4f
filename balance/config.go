package balance

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/natsfabric/natsfabric/internal/token"
)

// Defaults of [Config].
const (
	DefaultWorkers = 1
	DefaultSettle  = 100 * time.Millisecond
	// DefaultPartitions is a number of partitions that does for groups of up to some
	// hundred workers.
	DefaultPartitions = 1024
	// DefaultRevokeTimeout is how long the context of OnRevoke lasts.
	DefaultRevokeTimeout = 10 * time.Second
	// DefaultProbation is the longest probation of a PID that comes and goes.
	DefaultProbation = 30 * time.Second
)

// Limits of [Config].
const (
	// MaxSettle is the ceiling of the settle window: however often members come
	// and go, a new view is written no later than this after the first change, or
	// three times this if at least 32 have come ([Config.Settle]) and nobody is gone.
	MaxSettle = time.Second
	// MaxWorkers is the most indices one member can want. A larger number in a
	// record that did not come from this package counts as MaxWorkers.
	MaxWorkers = 1 << 16
	// MaxTotal is the most indices a group can have, so that an index fits an int
	// on every machine. A member that would exceed it is placed without an index.
	MaxTotal = math.MaxInt32
	// MaxPartitions is the most partitions a group can have: their holders must fit
	// the group's view.
	MaxPartitions = 1 << 15
	// MaxWeight is the largest Weight.
	MaxWeight = 1 << 10
	// MaxStrict is the most indices a member of a group in a strict mode can want: it
	// has a record for each.
	MaxStrict = 1 << 10
	// MaxRejoin is the longest Rejoin.
	MaxRejoin = 24 * time.Hour
	// MaxProbation is the longest Probation.
	MaxProbation = 10 * time.Minute
)

// Config says which group to join and how much of its work to take. The zero value
// of every field but Group is its default.
type Config struct {
	// Group names the group; required for Join, and ignored by Static. The members
	// of one fabric that name the same group share its indices. Letters, digits,
	// '_' and '-', at most 64.
	Group string

	// Workers is how many indices the member wants, at most [MaxWorkers]. 0 means
	// [DefaultWorkers]; negative is an error.
	Workers int

	// Passive joins to watch: the member sees the total, takes no index, and adds
	// no worker to the group. Workers is ignored, and so are Layout, Mode, PerZone and
	// Partitions as soon as there is anybody else: a passive member goes along with how
	// the group divides its work.
	Passive bool

	// Settle is how long the group must be quiet before a change of its members
	// becomes a view, so that many joins at once become one; [MaxSettle] is the
	// ceiling. If 16 members have come and nobody is gone it must be quiet for
	// twice as long, and if 32 have, three times. Nodes that came into the fabric in
	// the last second, and may be about to join the group, count as having come, and
	// if they are 16 the group waits for them for that second. The group's coordinator
	// applies its own Settle, so give every member the same. Default [DefaultSettle].
	Settle time.Duration

	// Layout says how the indices lie. It, Mode, PerZone and whether there are Partitions
	// must be the same at every member: one that disagrees with those who are there does
	// not get in ([ErrMismatch]). Default [Contiguous].
	Layout Layout

	// Mode says what is guaranteed while indices, or partitions, move. A strict mode
	// needs OnRevoke or OnChange, for somebody must stop the work. Default [Default].
	Mode Mode

	// Partitions, if not 0, divides the group's work into so many partitions besides,
	// and gives each to one member; see [Group.Partitions]. Layout must be Contiguous,
	// and Mode is about the partitions. The number belongs to the group: a member
	// with another one goes by the group's. But once all of its members have to do
	// with a power of two times as many, say after an upgrade, the first of them
	// doubles it, and no key changes its owner. At most [MaxPartitions].
	Partitions int

	// Weight is how many partitions a worker of this member gets, relative to those of
	// others. Default 1, at most [MaxWeight].
	Weight int

	// Zone is where the member is. Of members with the same claim to one partition
	// more, one in the zone with the fewest gets it. Any text, at most 64 bytes.
	Zone string

	// PerZone gives each of the partitions to one member in every zone, instead of one in
	// all: a group with members in three zones then has three owners of each, and a zone
	// that is lost leaves the others as they are. Every zone divides all of the partitions
	// among its own members, by weight, with the fewest moves and MoveBudget for each; a
	// strict mode means one holder in each zone, and a zone without members has no owners.
	// It needs Partitions and, of every member but a passive one, a Zone that is a name as
	// Group is. All members must agree on it, as on Layout. See [Partitions.Owners].
	PerZone bool

	// MoveBudget is how many partitions a view may take from members to make the parts
	// even; the coordinator's counts. 0 means 5 % of them, at least one; negative: any
	// number. Partitions without an owner are given out at once. In StrictEpoch, where a
	// change stops everyone, all move in one.
	MoveBudget int

	// Rejoin keeps the member's place for so long after it has left or failed: if the
	// PID joins again within it, it gets the same indices and nobody else's change,
	// which is what a rolling restart wants. Until then nobody has them. Default 0,
	// at most [MaxRejoin].
	Rejoin time.Duration

	// Probation is for how long, at most, a PID that comes and goes is given nothing when
	// it is back. A PID that failed three times in a row (crashed, or lost its lease: not
	// one that left) gets its indices only after it has been up for 1 s, then 2, 4 and so on
	// up to Probation; a minute after it was admitted, or with a Leave, its failures are
	// forgotten. Meanwhile Join returns, First is -1, and [Placed].Standing is [OnProbation].
	// A failure for which Rejoin kept the place does not count, and nobody is held back when
	// there is nobody else to do the work (with PerZone, in its zone). So the default,
	// [DefaultProbation], costs a group no worker that it could rely on, and saves all others
	// two changes for each crash. Negative: never. The coordinator's counts; at most
	// [MaxProbation].
	Probation time.Duration

	// NotReady joins without indices, and adds no worker, until SetReady.
	NotReady bool

	// Grace is how long before its lease's end a strict member gives its indices up,
	// so that the work has stopped when others may get them. At most a third of the
	// node's lease. Default a fifth of it in strict modes; ignored in the others.
	Grace time.Duration

	// OnRevoke is called with the indices, or partitions, that are no longer the
	// member's, before OnChange. In strict modes they are nobody else's until it and
	// OnChange have returned, or the member's lease has run out. ctx ends after
	// RevokeTimeout; what happens then is up to OnRevoke, but while it has not
	// returned nobody gets the indices. In a strict mode it is told of everything that
	// Share has shown, also of what was gone again before OnAssign was called for it.
	// It is called in turn with OnChange and OnAssign, and like them may call any method of the Group but Leave.
	OnRevoke func(ctx context.Context, indices []int)

	// OnAssign is called with the indices, or partitions, that have become the
	// member's, after OnChange. ctx is the group's.
	OnAssign func(ctx context.Context, indices []int)

	// RevokeTimeout is how long the context of OnRevoke lasts. Default
	// [DefaultRevokeTimeout].
	RevokeTimeout time.Duration

	// OnChange is called with the member's share, one call at a time and in order:
	// once before Join or Static returns, then whenever First, Workers or Total
	// differ from those of the call before. A share that was replaced while a call
	// was running is skipped, but the loss of an index never is: First is -1
	// exactly once when the member leaves or loses its index. No lock is held. It
	// should return when the work of the former share has stopped, because Leave
	// waits for it. It may call the Group's methods, all but Leave, which returns
	// [ErrInCallback] there.
	OnChange func(Share)

	// Logger gets state changes and swallowed errors. Default: discard.
	Logger *slog.Logger
}

// complete returns c with its defaults filled in, or what is wrong with it. The
// group's name is checked by those who need one.
func (c Config) complete() (Config, error) {
	workers, err := checkWorkers(c.Workers)
	if err != nil {
		return c, err
	}
	c.Workers = workers
	if c.Settle < 0 || c.Settle > MaxSettle {
		return c, &ConfigError{"Settle", fmt.Sprintf("%v is outside 0 to %v", c.Settle, MaxSettle)}
	}
	c.Settle = cmp.Or(c.Settle, DefaultSettle)
	if err := c.checkDivision(); err != nil {
		return c, err
	}
	c.Weight = cmp.Or(c.Weight, 1)
	c.RevokeTimeout = cmp.Or(c.RevokeTimeout, DefaultRevokeTimeout)
	c.Probation = cmp.Or(c.Probation, DefaultProbation)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	return c, nil
}

// checkDivision checks the fields that say how the work is divided.
func (c Config) checkDivision() error {
	outside := func(field string, v, low, high any) error {
		return &ConfigError{field, fmt.Sprintf("%v is outside %v to %v", v, low, high)}
	}
	switch {
	case c.Layout != Contiguous && c.Layout != Sticky:
		return &ConfigError{"Layout", fmt.Sprintf("%d is none", c.Layout)}
	case c.Mode < Default || c.Mode > StrictEpoch:
		return &ConfigError{"Mode", fmt.Sprintf("%d is none", c.Mode)}
	case c.Mode != Default && !c.Passive && c.OnRevoke == nil && c.OnChange == nil:
		return &ConfigError{"Mode", "a strict mode needs OnRevoke or OnChange, to stop the work"}
	case c.Mode != Default && c.Workers > MaxStrict:
		return outside("Workers", c.Workers, 0, fmt.Sprint(MaxStrict, " in a strict mode"))
	case c.Partitions < 0 || c.Partitions > MaxPartitions:
		return outside("Partitions", c.Partitions, 0, MaxPartitions)
	case c.Partitions > 0 && c.Layout != Contiguous:
		return &ConfigError{"Layout", "a group with partitions has contiguous indices"}
	case c.PerZone && c.Partitions == 0:
		return &ConfigError{"PerZone", "it is about Partitions, and there are none"}
	case c.PerZone && c.Zone == "" && !c.Passive:
		return &ConfigError{"Zone", "PerZone needs one"}
	case c.PerZone && c.Zone != "" && token.Check("zone", c.Zone) != nil:
		return &ConfigError{"Zone", fmt.Sprintf("with PerZone it must be a name: %v", token.Check("zone", c.Zone))}
	case c.Weight < 0 || c.Weight > MaxWeight:
		return outside("Weight", c.Weight, 0, MaxWeight)
	case len(c.Zone) > token.MaxLen:
		return &ConfigError{"Zone", fmt.Sprintf("it has %d bytes, at most %d are allowed", len(c.Zone), token.MaxLen)}
	case c.Rejoin < 0 || c.Rejoin > MaxRejoin:
		return outside("Rejoin", c.Rejoin, 0, MaxRejoin)
	case c.Probation > MaxProbation:
		return outside("Probation", c.Probation, "anything negative", MaxProbation)
	case c.RevokeTimeout < 0:
		return &ConfigError{"RevokeTimeout", fmt.Sprintf("%v is negative", c.RevokeTimeout)}
	case c.Grace < 0:
		return &ConfigError{"Grace", fmt.Sprintf("%v is negative", c.Grace)}
	}
	return nil
}

// under fills in what depends on the node's lease.
func (c Config) under(lease time.Duration) (Config, error) {
	switch {
	case c.Mode == Default:
		c.Grace = 0
	case c.Grace > lease/3:
		return c, &ConfigError{"Grace", fmt.Sprintf("%v is more than a third of the lease, %v", c.Grace, lease)}
	default:
		c.Grace = cmp.Or(c.Grace, lease/5)
	}
	return c, nil
}

// kind returns how the member thinks that the group divides its work.
func (c Config) kind() kind {
	return kind{sticky: c.Layout == Sticky, parts: c.Partitions > 0, zoned: c.PerZone, mode: c.Mode}
}

// calls reports whether there is anybody to tell of a change.
func (c Config) calls() bool { return c.OnChange != nil || c.OnRevoke != nil || c.OnAssign != nil }

// budget returns how many partitions may move in one view.
func (c Config) budget(parts int) int {
	return cmp.Or(c.MoveBudget, max(1, parts/20))
}

func checkGroup(name string) error { return token.Check("group", name) }

// checkWorkers returns the number of indices that a caller's n stands for.
func checkWorkers(n int) (int, error) {
	if n < 0 || n > MaxWorkers {
		return 0, &ConfigError{"Workers", fmt.Sprintf("%d is outside 0 to %d", n, MaxWorkers)}
	}
	return cmp.Or(n, DefaultWorkers), nil
}

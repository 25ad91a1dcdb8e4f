package balance

import (
	"cmp"
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
)

// Limits of [Config].
const (
	// MaxSettle is the ceiling of the settle window: however often members come
	// and go, a new view is written no later than this after the first change.
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
	// no worker to the group. Workers is ignored.
	Passive bool

	// Settle is how long the group must be quiet before a change of its members
	// becomes a view, so that many joins at once become one; [MaxSettle] is the
	// ceiling. The group's coordinator applies its own Settle, so give every member
	// the same. Default [DefaultSettle].
	Settle time.Duration

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
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	return c, nil
}

func checkGroup(name string) error { return token.Check("group", name) }

// checkWorkers returns the number of indices that a caller's n stands for.
func checkWorkers(n int) (int, error) {
	if n < 0 || n > MaxWorkers {
		return 0, &ConfigError{"Workers", fmt.Sprintf("%d is outside 0 to %d", n, MaxWorkers)}
	}
	return cmp.Or(n, DefaultWorkers), nil
}

package balance

import (
	"errors"

	"github.com/natsfabric/natsfabric/internal/token"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrClosed: the member has left the group, or is leaving.
	ErrClosed = errors.New("balance: group closed")
	// ErrConfig: a field of a Config, or an argument, is not usable. See
	// [ConfigError].
	ErrConfig = errors.New("balance: bad configuration")
	// ErrJoined: the node is in the group already.
	ErrJoined = errors.New("balance: the node is in the group already")
	// ErrMismatch: the group's members divide its work in another way: Layout, Mode,
	// PerZone, or whether there are Partitions, differs.
	ErrMismatch = errors.New("balance: the group divides its work in another way")
	// ErrNotHeld: the index is not the member's, or is no longer.
	ErrNotHeld = errors.New("balance: index not held")
	// ErrNoMember: the group has no member of that PID.
	ErrNoMember = errors.New("balance: no such member of the group")
	// ErrNotStrict: the group's mode gives no guarantee that could be kept here.
	ErrNotStrict = errors.New("balance: the group is not in a strict mode")
	// ErrInCallback: Leave was called from inside OnChange, OnRevoke or OnAssign, which
	// it would wait for. Nothing was done; call it in a goroutine of its own.
	ErrInCallback = errors.New("balance: Leave called from inside OnChange")
)

// A NameError says which group name was refused and why.
type NameError = token.Error

// A ConfigError says which field of a Config, or which argument, cannot be used,
// and why. It wraps [ErrConfig].
type ConfigError struct {
	Field  string // "Workers", "Settle", or an argument of Static: "first", "total"
	Reason string
}

func (e *ConfigError) Error() string { return "balance: " + e.Field + ": " + e.Reason }
func (e *ConfigError) Unwrap() error { return ErrConfig }

package election

import (
	"context"
	"errors"
	"fmt"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/token"
)

// Errors that callers branch on with errors.Is.
var (
	// ErrLost is the cause of a term's end when its lease was not renewed in time,
	// or another process ended it.
	ErrLost = errors.New("election: term lost")
	// ErrResigned is the cause of a term's end when it was given up: by Resign, by
	// the return of Lead's function, or because the node leaves.
	ErrResigned = errors.New("election: term resigned")
	// ErrHandOver is the cause of a term's end when it is handed over, by Transfer, or
	// because another asked for that: the term of a process that was asked holds until
	// it has stopped its work and resigned.
	ErrHandOver = errors.New("election: term handed over")
	// ErrNoCandidate: who should take over does not stand for election.
	ErrNoCandidate = errors.New("election: no such candidate")
	// ErrNotTaken: who should take over did not, and another did.
	ErrNotTaken = errors.New("election: not taken over")
	// ErrFenced: the term has ended, and another may lead or have led. The write was
	// refused because of that, unless the error wraps [ErrUnknown] as well.
	ErrFenced = errors.New("election: fenced")
	// ErrUnknown: the write may have been stored, or may yet be.
	ErrUnknown = errors.New("election: outcome unknown")
	// ErrTooLarge: the value is larger than [MaxState].
	ErrTooLarge = errors.New("election: value too large")
	// ErrNoLeader: nobody leads at the moment.
	ErrNoLeader = errors.New("election: no leader")
	// ErrTaken: another leads, and Try does not wait.
	ErrTaken = errors.New("election: another leads")
	// ErrConfig: a field of a Config is not usable. See [ConfigError].
	ErrConfig = errors.New("election: bad configuration")
	// ErrForeign: the election's key in the bucket holds a record that is not the
	// fabric's. It is not overwritten: remove it by hand. If somebody leads, that term
	// ends then, and the next begins one longest lease after.
	ErrForeign = errors.New("election: foreign record")
)

// A NameError says which name was refused and why.
type NameError = token.Error

// A ConfigError says which field of a Config cannot be used, and why. It wraps
// [ErrConfig].
type ConfigError struct {
	Field  string
	Reason string
}

func (e *ConfigError) Error() string { return "election: Config." + e.Field + ": " + e.Reason }
func (e *ConfigError) Unwrap() error { return ErrConfig }

// explain turns an internal error into the public one.
func (e *Election) explain(err error) error {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*lease.ForeignError](err); ok {
		return fmt.Errorf("%w: key %s", ErrForeign, f.Key)
	}
	switch {
	case errors.Is(err, lease.ErrTaken):
		err = ErrTaken
	case errors.Is(err, lease.ErrPassive):
		err = fabric.ErrPassive
	case errors.Is(err, lease.ErrLeft):
		err = fabric.ErrClosed
	case e.host.Session.Leaving().Err() != nil && context.Cause(e.host.Session.Leaving()) != lease.ErrLeft:
		<-e.node.Context().Done() // the session has ended, so the node does, and says why
		err = context.Cause(e.node.Context())
	}
	return fmt.Errorf("election %s: %w", e.cfg.Name, err)
}

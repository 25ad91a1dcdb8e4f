package fence

import (
	"errors"
	"fmt"
)

var (
	// ErrClosed: the gate was closed.
	ErrClosed = errors.New("fence: gate is closed")
	// ErrInUse: another gate has the file open.
	ErrInUse = errors.New("fence: file is in use")
	// ErrCorrupt: the file is not one that a gate has written, or was damaged. It says
	// nothing about the highest token, so nothing is admitted: find that token
	// elsewhere, and write the file anew.
	ErrCorrupt = errors.New("fence: file is corrupt")
)

// A StaleError refuses a token lower than one that was admitted before, or 0.
type StaleError struct{ Token, Highest uint64 }

func (e *StaleError) Error() string {
	return fmt.Sprintf("fence: token %d is stale, %d was admitted", e.Token, e.Highest)
}

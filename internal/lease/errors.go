package lease

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrLost: the lease ended before it was renewed, or the incarnation was ended.
	ErrLost = errors.New("lease lost")
	// ErrReleased: the holder gave it up.
	ErrReleased = errors.New("released")
	// ErrLeft: the session has left, or is leaving.
	ErrLeft = errors.New("session has left")
	// ErrTaken: another holds the claim, and it was not to be waited for.
	ErrTaken = errors.New("claim is taken")
	// ErrFenced: the claim was another's since, or is.
	ErrFenced = errors.New("fenced")
	// ErrNotCandidate: the session writes its own records only.
	ErrNotCandidate = errors.New("fabric: node is not a candidate")
	// ErrPassive: a passive session holds nothing.
	ErrPassive = errors.New("session is passive")
)

// A HeldError says which living process has the PID.
type HeldError struct {
	PID, Host string
	Since     time.Time
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("PID %s is held by a process on %s since %s", e.PID, e.Host, e.Since.Format(time.RFC3339))
}

package roster

import "github.com/natsfabric/natsfabric/internal/lease"

// StandsBy reports whether the node waits for the roster's claim.
func (r *Roster) StandsBy() bool { return r.claim.Phase() == lease.PhaseWaiting }

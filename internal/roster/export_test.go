package roster

import "github.com/natsfabric/natsfabric/internal/lease"

// StandsBy reports whether the node waits for the roster's claim.
func (r *Roster) StandsBy() bool { return r.claim.Phase() == lease.PhaseWaiting }

// Named is what a member that says it coordinates sends to name a view.
func Named(pid string, epoch, token uint64) []byte { return beaconOf(epoch, token, pid, nil).encode() }

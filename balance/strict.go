package balance

import "github.com/natsfabric/natsfabric/internal/roster"

// A keeper is the member's side of a strict kind: what one membership may act on. It
// is pure; its owner tells it what happens. The coordinator's side is [poll.plan].
//
//	view: in Slots            fenced                  view: not in Slots
//	    ----------> wanted ------------> held ----------------------------> nothing
//	                                                                          |
//	             the work has stopped, written as acknowledged: due() -------+
//
// The lease is not the keeper's business: when it is lost the keeper is dropped, and
// the next incarnation has a new one.
type keeper struct {
	id    identity
	epoch uint64 // of the newest view
	may   slots  // what that view lets it have
	mark  uint64 // the epoch at which that view took something, 0 if nothing is open
	held  slots  // what it acts on, always among may
	acked uint64 // the newest epoch that it has acknowledged
}

// see takes the newest view, if the view knows this very membership, and returns what
// must not be acted on any more.
func (k *keeper) see(v *roster.View) (lost slots) {
	self, ok := v.Find(k.id.pid)
	if v.Epoch <= k.epoch || !ok || identityOf(self) != k.id {
		return ""
	}
	k.epoch, k.may, k.mark = v.Epoch, slots(self.Slots), self.Mark
	lost = k.held.without(k.may)
	k.held = k.held.both(k.may)
	return lost
}

// due returns the epoch to acknowledge once the work on everything that is not held
// has stopped; 0 if there is nothing to acknowledge.
func (k *keeper) due() uint64 {
	if k.mark > k.acked {
		return k.epoch
	}
	return 0
}

// open reports whether what was acknowledged last is still to be given up, by the newest
// view.
func (k *keeper) open() bool { return k.mark != 0 && k.mark <= k.acked }

// acknowledged notes that epoch was acknowledged.
func (k *keeper) acknowledged(epoch uint64) { k.acked = max(k.acked, epoch) }

// wanted returns what may be held and is not yet.
func (k *keeper) wanted() slots { return k.may.without(k.held) }

// fenced lets it act on s, as far as it still may.
func (k *keeper) fenced(s slots) { k.held = k.held.and(s.both(k.may)) }

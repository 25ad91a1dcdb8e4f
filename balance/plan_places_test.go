package balance

import (
	"fmt"
	"testing"

	"github.com/natsfabric/natsfabric/internal/roster"
)

// A leave moves what the one who left had, in all modes: also where everybody pauses
// meanwhile.
func TestPlanKeepsPlaces(t *testing.T) {
	for _, k := range kinds {
		if !k.sticky && !k.parts {
			continue
		}
		t.Run(k.String(), func(t *testing.T) {
			p := newPlanner(t, 1, k)
			rest := func() {
				for range 6 {
					p.learn(true)
					p.step()
				}
			}
			for i := range 5 {
				p.inc++
				pid := fmt.Sprint("m", i)
				p.here[pid] = roster.Member{PID: pid, Inc: p.inc, Ask: roster.Ask{Workers: 2, Stay: p.inc, Kind: k.String(), Parts: 60 * bit(k.parts)}}
				rest()
			}
			had := map[string]slots{}
			for _, m := range p.view.Members {
				had[m.PID] = slots(m.Slots)
			}
			const leaver = "m1"
			delete(p.here, leaver)
			p.step()
			for len(p.view.Members) > len(p.here) || p.view.Members[0].Slots == "" { // one after the other gives up
				for _, m := range p.view.Members {
					if id := identityOf(m); p.poll.acked[id] < p.view.Epoch {
						p.poll.acked[id] = p.view.Epoch
						break
					}
				}
				p.step()
				p.poll.ended[identity{leaver, 2, 2}] = true
			}
			rest()
			for _, m := range p.view.Members {
				// Of indices, those at or above the new total move as well.
				stay := had[m.PID]
				if k.sticky {
					stay = stay.both(newSlots(all(p.view.Units)))
				}
				if gone := stay.without(slots(m.Slots)); gone != "" {
					t.Errorf("%s had %v and has %v", m.PID, had[m.PID].spans(), slots(m.Slots).spans())
				}
			}
		})
	}
}

// Where a change stops everyone, the partitions that move do so in one.
func TestPlanPausesOnce(t *testing.T) {
	p := newPlanner(t, 1, kind{parts: true, mode: StrictEpoch})
	p.poll.budget = func(int) int { return 1 }
	for i := range 2 {
		p.inc++
		pid := fmt.Sprint("m", i)
		p.here[pid] = roster.Member{PID: pid, Inc: p.inc, Ask: roster.Ask{Workers: 1, Stay: p.inc, Kind: p.k.String(), Parts: 60}}
		for range 2 { // all give up, and all go on
			p.step()
			p.learn(true)
		}
	}
	for _, m := range p.view.Members {
		if n := slots(m.Slots).count(); n != 30 {
			t.Errorf("%s has %d of 60 after one pause, want 30", m.PID, n)
		}
	}
}

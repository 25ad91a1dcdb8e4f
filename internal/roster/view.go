package roster

import (
	"encoding/json"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/token"
)

// A Member is one line of a view.
type Member struct {
	PID   string            `json:"pid"`
	Inc   uint64            `json:"inc"`
	Host  string            `json:"host,omitempty"`
	Since time.Time         `json:"since,omitzero"`
	Meta  map[string]string `json:"meta,omitempty"`
	// Of a balance group: indices wanted, or Passive.
	Workers int  `json:"workers,omitempty"`
	Passive bool `json:"passive,omitempty"`
}

func (m Member) equal(o Member) bool {
	return m.PID == o.PID && m.Inc == o.Inc && m.Workers == o.Workers && m.Passive == o.Passive && maps.Equal(m.Meta, o.Meta)
}

// A Departure is a member that is no longer in the view, and why.
type Departure struct {
	PID    string `json:"pid"`
	Inc    uint64 `json:"inc"`
	Failed bool   `json:"failed,omitempty"`
}

// keepGone is how many departures a view remembers, for followers that missed
// the announcement.
const keepGone = 128

// A View is one numbered snapshot. It is not modified once it is shared.
type View struct {
	Key     string      `json:"key"`
	Epoch   uint64      `json:"epoch"`
	Token   uint64      `json:"token"`
	PID     string      `json:"pid"` // the coordinator
	Members []Member    `json:"members"`
	Gone    []Departure `json:"gone,omitempty"`
	Nonce   string      `json:"nonce"`
}

// Find returns the member with the PID.
func (v *View) Find(pid string) (Member, bool) {
	// The order depends on what all PIDs look like, so this is no binary search.
	for i := range v.Members {
		if v.Members[i].PID == pid {
			return v.Members[i], true
		}
	}
	return Member{}, false
}

// Failed reports whether the member that departed did not leave by itself.
func (v *View) Failed(pid string, inc uint64) bool {
	for _, d := range slices.Backward(v.Gone) {
		if d.PID == pid && d.Inc == inc {
			return d.Failed
		}
	}
	return true
}

// An announcement is the step from one view to the next, or with Prev == Epoch the
// beacon that names the current one. Its form on the wire is wire.go's.
type announcement struct {
	Epoch, Token uint64
	Prev, After  uint64 // epoch and token of the view before
	PID          string // the coordinator
	Set          []Member
	Gone         []Departure
}

// beaconOf names a view.
func beaconOf(epoch, token uint64, pid string) announcement {
	return announcement{Epoch: epoch, Prev: epoch, After: token, Token: token, PID: pid}
}

// diff returns what leads from v's members to those given: the new and changed
// ones, and the ones that are no longer there.
func (v *View) diff(members []Member, failed func(Member) bool) (set []Member, gone []Departure) {
	old := make(map[string]Member, len(v.Members))
	for _, m := range v.Members {
		old[m.PID] = m
	}
	for _, m := range members {
		before, ok := old[m.PID]
		if ok && before.Inc != m.Inc {
			gone = append(gone, Departure{before.PID, before.Inc, failed(before)})
		}
		if !ok || !before.equal(m) {
			set = append(set, m)
		}
		delete(old, m.PID)
	}
	for _, m := range old {
		gone = append(gone, Departure{m.PID, m.Inc, failed(m)})
	}
	// Followers sort faster what is sorted, or nearly.
	order := token.Order((&View{Members: set}).pids())
	slices.SortFunc(set, func(a, b Member) int { return order(a.PID, b.PID) })
	return set, gone
}

// next returns the view that the step leads to.
func (v *View) next(a announcement) *View {
	replaced := make(map[string]struct{}, len(a.Set)+len(a.Gone))
	for _, d := range a.Gone {
		replaced[d.PID] = struct{}{}
	}
	for _, m := range a.Set {
		replaced[m.PID] = struct{}{}
	}
	n := &View{Key: v.Key, Epoch: a.Epoch, Token: a.Token, PID: a.PID}
	n.Members = make([]Member, 0, len(v.Members)+len(a.Set))
	for _, m := range v.Members {
		if _, ok := replaced[m.PID]; !ok {
			n.Members = append(n.Members, m)
		}
	}
	n.Members = append(n.Members, a.Set...)
	order := token.Order(n.pids())
	slices.SortFunc(n.Members, func(a, b Member) int { return order(a.PID, b.PID) })
	n.Gone = slices.Concat(v.Gone, a.Gone)
	n.Gone = n.Gone[max(0, len(n.Gone)-keepGone):]
	return n
}

func (v *View) pids() iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range v.Members {
			if !yield(v.Members[i].PID) {
				return
			}
		}
	}
}

// parseView reads a view; an absent one is empty, with epoch 0.
func parseView(e kv.Entry) (*View, error) {
	v := &View{Key: e.Key}
	if e.Value == nil {
		return v, nil
	}
	if err := json.Unmarshal(e.Value, v); err != nil || v.Key != e.Key || v.Epoch == 0 {
		return nil, &lease.ForeignError{Key: e.Key}
	}
	return v, nil
}

package roster

import (
	"encoding/json"
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
// beacon that names the current one.
type announcement struct {
	Epoch uint64 `json:"epoch"`
	Prev  uint64 `json:"prev"`
	Token uint64 `json:"token"`
	// PrevToken is that of the view before.
	PrevToken uint64      `json:"prev_token,omitempty"`
	PID       string      `json:"pid"`
	Set       []Member    `json:"set,omitempty"`
	Gone      []Departure `json:"gone,omitempty"`
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
	return set, gone
}

// next returns the view that the step leads to.
func (v *View) next(a announcement) *View {
	members := make(map[string]Member, len(v.Members)+len(a.Set))
	for _, m := range v.Members {
		members[m.PID] = m
	}
	for _, d := range a.Gone {
		delete(members, d.PID)
	}
	for _, m := range a.Set {
		members[m.PID] = m
	}
	n := &View{Key: v.Key, Epoch: a.Epoch, Token: a.Token, PID: a.PID}
	n.Members = slices.Collect(maps.Values(members))
	order := token.Order(maps.Keys(members))
	slices.SortFunc(n.Members, func(a, b Member) int { return order(a.PID, b.PID) })
	n.Gone = slices.Concat(v.Gone, a.Gone)
	n.Gone = n.Gone[max(0, len(n.Gone)-keepGone):]
	return n
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

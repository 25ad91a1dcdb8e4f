package roster

import (
	"bytes"
	"reflect"
	"testing"
	"time"
)

var announcements = []announcement{
	beaconOf(7, 1795220590763, "a", nil),
	beaconOf(7, 1795220590763, "a", map[string]uint64{"b": 1 << 50}),
	{Epoch: 1, Token: 5, PID: "a", Kind: "sticky", Units: 12, Set: []*Member{
		{PID: "a", Inc: 5, Host: "h", Since: time.Unix(1, 2).UTC(), Meta: map[string]string{"zone": "1", "": "x"}},
		{PID: "10", Inc: 1 << 60, Since: time.Unix(0, 0).UTC(), Ask: Ask{Workers: 65536, Passive: true}},
		{PID: "z", Inc: 1, Since: time.Unix(0, 0).UTC(), Ask: Ask{Workers: 2, Idle: true, Weight: 3, Zone: "eu", Kind: "sticky", Parts: 9, Stay: 1 << 62}, Given: Given{Slots: "0-3,7", Going: "9", Mark: 12, Away: true, Refused: true, Evicted: true, Strikes: 300, Probation: true}},
	}},
	{Epoch: 9, Prev: 8, After: 5, Token: 6, PID: "b", Gone: []Departure{{"a", 5, true, 0, 4}, {"c", 6, false, 0, 0}, {"d", 7, true, Unheard, 0}}},
}

func TestAnnouncementsOnTheWire(t *testing.T) {
	for _, want := range announcements {
		data := want.encode()
		got, err := decodeAnnouncement(data)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("decode(encode(%+v)) = %+v, %v", want, got, err)
		}
		for i := range data {
			if a, err := decodeAnnouncement(data[:i]); err == nil {
				t.Errorf("%d of %d bytes decode to %+v", i, len(data), a)
			}
		}
	}
}

// FuzzAnnouncement: what is decoded survives being encoded, and garbage does not
// make anything large.
func FuzzAnnouncement(f *testing.F) {
	for _, a := range announcements {
		f.Add(a.encode())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := decodeAnnouncement(bytes.Clone(data))
		if err != nil {
			return
		}
		again, err := decodeAnnouncement(a.encode())
		if err != nil || !reflect.DeepEqual(again, a) {
			t.Errorf("%+v became %+v, %v", a, again, err)
		}
	})
}

package roster

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// FuzzView: whatever stands under a view's key is a view of that key or foreign. What is
// one is read again as it was written, and a step to the same members changes nothing.
func FuzzView(f *testing.F) {
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	key := lease.KeyView("members")
	for _, v := range []View{
		{Key: key, Epoch: 1, Token: 7, PID: "a", Members: []*Member{{PID: "a", Inc: 7, Host: "h", Since: since, Meta: map[string]string{"k": "v"}}}},
		{Key: key, Epoch: 2, Token: 9, PID: "b", Gone: []Departure{{PID: "a", Inc: 7, Failed: true}}},
		{Key: key, Epoch: 3, Members: []*Member{{PID: "2", Ask: Ask{Workers: 2, Stay: 1}, Given: Given{Slots: "0-1"}}, {PID: "10"}}},
	} {
		data, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(key, data)
	}
	f.Add(key, []byte(`{"stream":"KV_fab_t_production","seq":7}`))
	f.Add(key, []byte(`{"key":"v.members","epoch":1,"members":[{"pid":"b"},{"pid":"a"},{"pid":"a"},{}]}`))
	f.Add(key, []byte(`{"key":"v.members","epoch":18446744073709551615,"members":null,"gone":[{}]}`))
	f.Fuzz(func(t *testing.T, key string, data []byte) {
		if !utf8.ValidString(key) {
			return // no key of a bucket
		}
		v, err := parseView(kv.Entry{Key: key, Rev: 9, Value: data})
		if err != nil {
			if e, ok := errors.AsType[*lease.ForeignError](err); !ok || e.Key != key {
				t.Errorf("%q: %v", key, err)
			}
			return
		}
		for _, m := range v.Members {
			v.Find(m.PID)
		}
		written, err := json.Marshal(v)
		if err != nil {
			t.Fatalf("%+v: %v", v, err)
		}
		again, err := parseView(kv.Entry{Key: v.Key, Rev: 9, Value: written})
		if data == nil || v.Epoch == 0 {
			return // there is none: nothing writes that
		}
		twice, _ := json.Marshal(again)
		if err != nil || !reflect.DeepEqual(twice, written) {
			t.Errorf("%s became %s, %v", written, twice, err)
		}
		known := map[string]bool{}
		for _, m := range v.Members {
			if known[m.PID] {
				return // somebody is there twice: no coordinator of ours writes that
			}
			known[m.PID] = true
		}
		set, gone := v.diff(v.Members, func(*Member) Departure { return Departure{} })
		if len(set) > 0 || len(gone) > 0 {
			t.Errorf("from %s to its own members: %v, %v", written, set, gone)
		}
		if n := v.next(announcement{Epoch: v.Epoch}); len(n.Members) != len(v.Members) {
			t.Errorf("the next view of %s has %d members", written, len(n.Members))
		}
	})
}

package lease

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
)

// FuzzRecords: whatever stands under a key, it is either a record of that key that
// says who it is about, or foreign; and what we write is read as it was.
func FuzzRecords(f *testing.F) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, r := range []any{
		PIDRecord{Key: KeyPID("a"), State: stateHeld, PID: "a", Since: now, Proc: "p", Nonce: "n"},
		PIDRecord{Key: KeyPID("a"), State: stateDead, PID: "a", Inc: 7, Since: now},
		SessionRecord{Key: KeySession("a"), PID: "a", Inc: 7, LeaseMS: 5000, Since: now, Meta: map[string]string{"k": "v"}, N: 1},
		ClaimRecord{Key: KeyElection("a"), State: stateHeld, PID: "a", Inc: 7, Term: 1, Since: now, Nonce: "n"},
	} {
		f.Add(KeyPID("a"), encode(r))
		f.Add(KeySession("a"), encode(r))
		f.Add(KeyElection("a"), encode(r))
	}
	f.Add(KeyPID("a"), []byte(`{"stream":"KV_fab_t_production","seq":7}`))
	f.Add(KeySession("a"), []byte(`{"key":"s.a","pid":"a","inc":1,"lease_ms":9223372036854775807}`))
	f.Add(KeySession("a"), []byte(`{"key":"s.a","PID":"a","inc":-1,"lease_ms":1e3}`))
	f.Add("b", []byte(`{"key":"b"}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		e := kv.Entry{Key: key, Rev: 9, Value: value}
		pid, errPID := ParsePID(e)
		session, errSession := ParseSession(e)
		claim, errClaim := ParseClaim(e)
		for _, err := range []error{errPID, errSession, errClaim, Verify(e)} {
			if f, ok := errors.AsType[*ForeignError](err); err != nil && (!ok || f.Key != key) {
				t.Errorf("%q: %v", key, err)
			}
		}
		if errPID == nil && (key != KeyPID(pid.PID) || pid.Held() && pid.Left() && pid.Prev != stateLeft) {
			t.Errorf("%q is read as %+v", value, pid)
		}
		if errSession == nil && (key != KeySession(session.PID) || session.Inc == 0 || session.Lease() <= 0) {
			t.Errorf("%q is read as %+v, lease %v", value, session, session.Lease())
		}
		if errClaim == nil && claim.Key != key {
			t.Errorf("%q is read as %+v", value, claim)
		}
		var v Vigil // what a challenger makes of it
		v.See(e.Rev, session.Lease(), now)
		if _, due := v.Due(); errSession == nil && due.Before(now) {
			t.Errorf("a session with a lease of %v may be ended before it began", session.Lease())
		}
		if errClaim == nil && strings.HasPrefix(key, prefixClaim) {
			again, err := ParseClaim(kv.Entry{Key: key, Value: encode(claim)})
			if err != nil || !bytes.Equal(encode(again), encode(claim)) {
				t.Errorf("%+v is read back as %+v, %v", claim, again, err)
			}
		}
		if !json.Valid(value) && (errPID == nil || errSession == nil || errClaim == nil) {
			t.Errorf("%q is believed", value)
		}
	})
}

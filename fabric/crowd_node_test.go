package fabric_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// stuff writes the records of a member that nobody is, as large as one may be.
func stuff(t *testing.T, nc *nats.Conn, pid string, meta string) {
	t.Helper()
	appear(t, nc, pid, take(t, nc, pid), meta)
}

// take has nobody hold a PID, under the incarnation returned.
func take(t *testing.T, nc *nats.Conn, pid string) (inc uint64) {
	t.Helper()
	claim := fmt.Sprintf(`{"key":"c.p.%[1]s","state":"held","pid":"%[1]s","since":"2026-01-01T00:00:00Z","proc":"p","nonce":"n"}`, pid)
	m, err := nc.Request("$KV.fab_c_production.c.p."+pid, []byte(claim), time.Minute)
	var ack struct{ Seq uint64 }
	if err == nil {
		err = json.Unmarshal(m.Data, &ack)
	}
	if err != nil || ack.Seq == 0 {
		t.Fatalf("%v: %s", err, m.Data)
	}
	return ack.Seq
}

// appear writes the session of nobody who holds a PID.
func appear(t *testing.T, nc *nats.Conn, pid string, inc uint64, meta string) {
	t.Helper()
	shown, err := json.Marshal(map[string]string{"k": meta})
	if err != nil {
		t.Fatal(err)
	}
	write(t, nc, "s."+pid, fmt.Sprintf(`{"key":"s.%[1]s","pid":"%[1]s","inc":%[2]d,"since":"2026-01-01T00:00:00Z","lease_ms":60000,"meta":%[3]s}`, pid, inc, shown))
}

// A crowd of which the PIDs are held already is one view, though it comes with pauses longer
// than a crowd must be quiet. PIDs whose holders do not come delay one who does by a second at
// most, and none who leaves.
func TestCrowdInSight(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		await(t, a, "a", "b")
		nc := s.Connect()
		time.Sleep(10 * time.Second)
		before := a.View().Epoch
		crowd := make(map[string]uint64)
		for i := range 40 {
			pid := fmt.Sprint("x", i)
			crowd[pid] = take(t, nc, pid)
		}
		for come := 0; come < 40; come++ {
			if come == 5 || come == 20 { // 35 and 20 are in sight
				time.Sleep(400 * time.Millisecond)
			}
			pid := fmt.Sprint("x", come)
			appear(t, nc, pid, crowd[pid], "")
		}
		time.Sleep(5 * time.Second)
		if v := a.View(); len(v.Members) != 42 || v.Epoch != before+1 {
			t.Errorf("%d members in %d views, want 42 in one", len(v.Members), v.Epoch-before)
		}
		for i := range 40 {
			take(t, nc, fmt.Sprint("y", i))
		}
		began := time.Now()
		if err := b.Leave(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
		for range a.Changes(within(t, time.Minute)) {
			if len(a.View().Members) == 41 {
				break
			}
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("who left was a member for %v more", took)
		}
	})
}

// A flood of members, as large as they may be: those who were there stay, the view
// holds as many as fit, and the others are told why they do not get in. When the
// flood is over there is room again.
func TestTooManyMembers(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		await(t, a, "a", "b")
		nc := s.Connect()
		large := strings.Repeat("\x01", fabric.MaxMeta-1) // six bytes each, in JSON
		for i := range 180 {
			stuff(t, nc, fmt.Sprintf("x%d", i), large)
		}
		time.Sleep(10 * time.Second)
		v := a.View()
		if n := len(v.Members); n < 100 || n > 200 || v.Members[0].PID != "a" || v.Members[1].PID != "b" {
			t.Errorf("the view has %d members, from %s", n, v.Members[0].PID)
		}
		if bv := b.View(); bv.Epoch != v.Epoch || len(bv.Members) != len(v.Members) {
			t.Errorf("b is in epoch %d with %d members, a in %d with %d", bv.Epoch, len(bv.Members), v.Epoch, len(v.Members))
		}
		_, err := fabric.Join(within(t, 10*time.Second), fabric.Config{
			Cluster: "c", PID: "c", NATS: options(s.Link()), Logger: slog.New(slog.DiscardHandler),
		})
		if !errors.Is(err, fabric.ErrFull) {
			t.Errorf("Join = %v, want ErrFull", err)
		}
		time.Sleep(90 * time.Second) // their leases run out
		join(t, s, "d")
		await(t, a, "a", "b", "d")
		if a.Context().Err() != nil || b.Context().Err() != nil {
			t.Error("a member was ended")
		}
	})
}

// A session that shows more of itself than a process may is foreign: it would fill
// the view.
func TestTooLargeMember(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		events := happenings(t, a)
		stuff(t, s.Connect(), "x", strings.Repeat("x", 3*fabric.MaxMeta+1))
		ev := expect(t, events, fabric.Foreign)
		if e, ok := errors.AsType[*fabric.ForeignRecordError](ev.Err); !ok || e.Key != "s.x" {
			t.Errorf("the event has %v, want s.x", ev.Err)
		}
		join(t, s, "b")
		await(t, a, "a", "b")
	})
}

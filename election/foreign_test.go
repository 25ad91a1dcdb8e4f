package election_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

func TestForeignRecord(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		n := join(t, s, "a")
		e := of(t, n, 0)
		nc := s.Connect()
		for _, garbage := range []string{"garbage", "{}", `{"key":"c.e.y","state":"held","pid":"b"}`, "", "null", `{"key":"c.e.x","state":"mine"}`} {
			if _, err := nc.Request("$KV.fab_c_production.c.e.x", []byte(garbage), time.Second); err != nil {
				t.Fatal(err)
			}
			if _, err := e.Campaign(within(t, time.Minute)); !errors.Is(err, election.ErrForeign) {
				t.Errorf("Campaign over %q = %v, want ErrForeign", garbage, err)
			}
			if _, err := e.Leader(t.Context()); !errors.Is(err, election.ErrForeign) {
				t.Errorf("Leader over %q = %v, want ErrForeign", garbage, err)
			}
		}
		if n.Context().Err() != nil || n.Incarnation() == 0 {
			t.Error("garbage in an election's key ended the node")
		}
		// Removed by a person, it is free.
		m := nats.NewMsg("$KV.fab_c_production.c.e.x")
		m.Header.Set("KV-Operation", "DEL")
		if _, err := nc.RequestMsg(m, time.Second); err != nil {
			t.Fatal(err)
		}
		resign(t, campaign(t, e))
	})
}

// Garbage that overwrites a leader's own record does not end its term, and does not
// let another begin one.
// A record that a person removes ends the term of a leader that lives, before another
// leads: also one of rubbish over which nobody could.
func TestRemovedRecordEndsTheTerm(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		ta := campaign(t, of(t, join(t, s, "a"), 0))
		eb := of(t, join(t, s, "b"), 0)
		write := func(m *nats.Msg) {
			m.Subject = "$KV.fab_c_production.c.e.x"
			if ack, err := s.Connect().RequestMsg(m, time.Second); err != nil || strings.Contains(string(ack.Data), "error") {
				t.Fatalf("%s, %v", ack.Data, err)
			}
		}
		write(&nats.Msg{Data: []byte("garbage")})
		if _, err := eb.Campaign(within(t, time.Minute)); !errors.Is(err, election.ErrForeign) || !ta.Valid() {
			t.Errorf("Campaign = %v, want ErrForeign; the leader's term is valid: %t", err, ta.Valid())
		}
		write(&nats.Msg{Header: nats.Header{"KV-Operation": {"DEL"}}})
		removed := time.Now()
		tb := campaign(t, eb)
		if cause := context.Cause(ta.Context()); ta.Valid() || !errors.Is(cause, election.ErrLost) {
			t.Errorf("b leads, and a's term is valid: %t, and ended by %v", ta.Valid(), cause)
		}
		if took := time.Since(removed); took < ttl || took > ttl*11/10 {
			t.Errorf("b leads %v after the record was removed, want a lease", took)
		}
		resign(t, tb)
	})
}

func TestForeignRecordOverALeader(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		term := campaign(t, of(t, join(t, s, "a"), 0))
		b := of(t, join(t, s, "b"), 0)
		if _, err := s.Connect().Request("$KV.fab_c_production.c.e.x", []byte("garbage"), time.Second); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Campaign(within(t, time.Minute)); !errors.Is(err, election.ErrForeign) {
			t.Errorf("Campaign = %v, want ErrForeign", err)
		}
		if !term.Valid() {
			t.Error("the term ended")
		}
		resign(t, term) // its record is gone: there is nothing to give back
	})
}

package election

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// joined returns a node; the caller has it leave.
func joined(t *testing.T, s *natstest.Server, pid string) *fabric.Node {
	t.Helper()
	n, err := fabric.Join(t.Context(), fabric.Config{
		Cluster: "c", PID: fabric.PID(pid), NATS: append(natstest.FastOptions(), nats.InProcessServer(s.Link())),
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A candidate that knows only of the leader's last term is told its rank in the present
// one. It does not ask again for that reason.
func TestStandBehindTheTimes(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		var asked atomic.Int64
		elections := map[string]*Election{}
		for _, pid := range []string{"a", "b"} {
			n := joined(t, s, pid)
			defer n.Leave(t.Context())
			e, err := New(n, Config{Name: "x"})
			if err != nil {
				t.Fatal(err)
			}
			elections[pid] = e
		}
		term, err := elections["a"].Campaign(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		o, err := officeOf(elections["b"].node, elections["b"].host)
		if err != nil {
			t.Fatal(err)
		}
		st, leave := o.stand(t.Context(), elections["b"])
		defer leave()
		if _, err := s.Connect(natstest.FastOptions()...).Subscribe("fab.c.production.y.elect-a.b", func(*nats.Msg) {
			if asked.Add(1) == 1000 { // in fake time it would go on for good
				st.cancel()
			}
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		st.holder.Store(lease.Holder{PID: "a", Token: term.Token() - 1})
		time.Sleep(time.Minute)
		if n := asked.Load(); n == 0 || n > 10 {
			t.Errorf("b told %d times in a minute that it stands", n)
		}
		if at := st.place.Get(); at.token != term.Token() || at.rank != 0 {
			t.Errorf("b's place is %+v, want the first of term %d", at, term.Token())
		}
	})
}

// TestForgedRank: what anybody may tell a candidate of its rank does it no harm.
func TestForgedRank(t *testing.T) {
	s := &stand{name: "x", o: &office{stands: map[string]*stand{}, chairs: map[string]*chair{}}}
	s.o.stands[s.name] = s
	for _, memo := range []string{
		`{"op":"rank","name":"x","token":18446744073709551615,"rank":9}`,
		`{"op":"rank","name":"x","token":18446744073709551615,"rank":9,"of":-1}`,
		`{"op":"rank","name":"x","token":18446744073709551615,"rank":9,"of":9223372036854775807}`,
		`{"op":"rank","name":"x","token":18446744073709551615,"rank":-9223372036854775808,"of":1}`,
	} {
		s.o.hear("b", []byte(memo))
		if d := s.place.Get().turn(); d < 0 || d > time.Minute {
			t.Errorf("%s: it waits %v", memo, d)
		}
	}
}

// Who is no longer a candidate by the time that it is heard preempts nobody.
func TestPreemptionOfOneThatIsOver(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		var nodes []*fabric.Node
		for _, pid := range []string{"a", "b"} {
			n := joined(t, s, pid)
			defer n.Leave(t.Context())
			nodes = append(nodes, n)
		}
		e, err := New(nodes[0], Config{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		term, err := e.Campaign(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		m := memo{Op: opStand, Name: "x", Inc: nodes[1].Incarnation() - 1, Priority: 1, Preempt: true}
		term.chair.enter("b", m)
		if !term.Valid() || term.chair.has("b") {
			t.Errorf("an incarnation that is over stands: %t, valid %t", term.chair.has("b"), term.Valid())
		}
		m.Inc++
		term.chair.enter("b", m)
		if term.Valid() {
			t.Error("the term holds against a candidate that preempts")
		}
	})
}

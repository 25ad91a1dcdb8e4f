package fabric

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestPolicies: what a full inbox does with the messages that do not fit.
func TestPolicies(t *testing.T) {
	for _, tt := range []struct {
		policy Policy
		kept   []uint64 // of 1 to 5, with room for 2
		told   int
	}{
		{Block, []uint64{1, 2}, 3}, {Reject, []uint64{1, 2}, 3}, {DropNewest, []uint64{1, 2}, 0}, {DropOldest, []uint64{4, 5}, 0},
	} {
		for _, mode := range []Mode{Fast, Reliable} {
			t.Run(fmt.Sprint(tt.policy, " ", mode), func(t *testing.T) {
				s := startServer(t)
				told := make(chan Undeliverable, 10)
				a := startNode(t, connect(t, s), "a", nil, func(c *courierConfig) { c.onUndeliverable = func(u Undeliverable) { told <- u } })
				b := startNode(t, connect(t, s), "b", nil, func(c *courierConfig) { c.inbox = Inbox{Messages: 2, OnFull: tt.policy} })
				ctx := deadline(t)
				for range 5 {
					if err := a.SendMsg(ctx, &Message{To: "b", Mode: mode, Data: []byte("x")}); err != nil {
						t.Fatal(err)
					}
				}
				kept, wantTold := tt.kept, tt.told
				if mode == Reliable && tt.policy == Block {
					kept, wantTold = []uint64{1, 2, 3, 4, 5}, 0
				}
				arrived := func() uint64 {
					st := b.Stats()
					if tt.policy == DropOldest { // what makes room was received, too
						return st.Received
					}
					return st.Received + st.Rejected + st.Dropped
				}
				for arrived() < 5 && ctx.Err() == nil {
					_ = b.courier.nc.Flush()
				}
				for _, id := range kept {
					if m := receive(t, b); m.ID != id {
						t.Errorf("received %d, want %d", m.ID, id)
					}
				}
				for range wantTold {
					select {
					case u := <-told:
						if !errors.Is(u, ErrInboxFull) {
							t.Errorf("told %v", u)
						}
					case <-ctx.Done():
						t.Fatal("the sender is not told")
					}
				}
				st := b.Stats()
				if n := 5 - len(kept); tt.policy >= DropNewest && int(st.Dropped) != n || tt.policy < DropNewest && int(st.Rejected) != n {
					t.Errorf("%+v", st)
				}
				if st.Waiting != 0 {
					t.Errorf("%d wait", st.Waiting)
				}
			})
		}
	}
}

// TestQuota: one sender cannot fill the inbox for all.
func TestQuota(t *testing.T) {
	s := startServer(t)
	b := startNode(t, connect(t, s), "b", nil, func(c *courierConfig) { c.inbox = Inbox{Messages: 10, PerSender: 3} })
	a, c := startNode(t, connect(t, s), "a", nil, nil), startNode(t, connect(t, s), "c", nil, nil)
	ctx := deadline(t)
	for i := range 5 {
		if err, full := ack(ctx, a, Message{To: "b"}), i >= 3; errors.Is(err, ErrInboxFull) != full {
			t.Errorf("message %d: %v", i, err)
		}
	}
	if err := ack(ctx, c, Message{To: "b"}); err != nil {
		t.Errorf("another sender: %v", err)
	}
	receive(t, b)
	if err := ack(ctx, a, Message{To: "b"}); err != nil {
		t.Errorf("after one was taken: %v", err)
	}
}

// TestOffline: while the connection is down, messages are kept in order, and not for
// longer than their time.
func TestOffline(t *testing.T) {
	s := startServer(t)
	told := make(chan Undeliverable, 10)
	nc := connect(t, s)
	a := startNode(t, nc, "a", nil, func(c *courierConfig) {
		c.offline = Offline{TTL: time.Hour, Messages: 3}
		c.onUndeliverable = func(u Undeliverable) { told <- u }
	})
	b := startNode(t, connect(t, s), "b", nil, nil)
	ctx := deadline(t)
	g, to := &a.courier.batcher, mustDest(t, a, "b")
	g.mu.Lock() // as if the connection were down: who finds it up publishes what waits
	for range 3 {
		id := a.courier.ids.Add(1)
		if !g.shelve(newParcel(to, &outgoing{kind: kindSend, id: id, data: []byte("x"), ttl: time.Hour})) {
			t.Error("not kept")
		}
	}
	if g.shelve(newParcel(to, &outgoing{kind: kindSend, id: 9, ttl: time.Hour})) {
		t.Error("more are kept than the bound says")
	}
	g.offline.queue[0].until = time.Now() // too old by the time it is looked at
	g.mu.Unlock()
	a.courier.reconnected()
	if err := a.Send(ctx, "b", nil); err != nil {
		t.Fatal(err)
	}
	for id := uint64(2); id <= 4; id++ {
		if m := receive(t, b); m.ID != id {
			t.Errorf("received %d, want %d", m.ID, id)
		}
	}
	if u := <-told; u.ID != 1 || !errors.Is(u, ErrDisconnected) {
		t.Errorf("told %v", u)
	}
}

func mustDest(t *testing.T, n *Node, to PID) *dest {
	t.Helper()
	d, err := n.courier.dest(to)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

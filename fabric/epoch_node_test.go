package fabric_test

import (
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestEpoch: all messages of one life of a sender have the same Epoch, whatever way they
// come, and those of the next another.
func TestEpoch(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		b := join(t, s, "b", mailbox)
		topic, err := b.JoinTopic(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		defer topic.Leave()
		seen := make(map[string]bool)
		for range 2 {
			a := join(t, s, "a")
			await(t, a, "a", "b")
			var epoch string
			for i, m := range []fabric.Message{
				{To: "b"}, {To: fabric.Everyone}, {Topic: "news"}, {To: "b", Mode: fabric.Acked},
				{To: "b", Mode: fabric.Reliable}, {To: "b", Mode: fabric.Durable}, {To: "b", Data: make([]byte, 1<<20)},
			} {
				if err := a.SendMsg(t.Context(), &m); err != nil {
					t.Fatal(err)
				}
				got := next(t, b)
				done(t, got, nil)
				if i == 0 {
					epoch = got.Epoch()
				}
				if got.Epoch() != epoch || epoch == "" {
					t.Errorf("message %d has epoch %q, want %q", i, got.Epoch(), epoch)
				}
			}
			if seen[epoch] {
				t.Errorf("epoch %s is of two lives", epoch)
			}
			seen[epoch] = true
			leave(t, a)
			await(t, b, "b")
		}
		if err := b.Send(t.Context(), "b", nil); err != nil {
			t.Fatal(err)
		}
		if own := next(t, b).Epoch(); own == "" || seen[own] {
			t.Errorf("the node's own epoch is %q", own)
		}
		nc := s.Connect()
		if err := nc.PublishMsg(&nats.Msg{Subject: "fab.c.production.u.b.ext"}); err != nil {
			t.Fatal(err)
		}
		if m := next(t, b); m.From != fabric.External || m.Epoch() != "" {
			t.Errorf("from %s with epoch %q", m.From, m.Epoch())
		}
	})
}

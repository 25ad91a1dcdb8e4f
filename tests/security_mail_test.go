package tests

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/permission"
)

// TestMailAimed: durable messages work with the permissions of members, in one
// account, once an admin has made the streams and the mailbox. An answer of
// JetStream's aimed at a mailbox is stored there, and handed to nobody.
func TestMailAimed(t *testing.T) {
	t.Parallel()
	r := newRealm(t, permission.Shared)
	boxed := func(c *fabric.Config) { c.Mailbox.On = true }
	root := r.join("root", boxed)
	admin := r.attacker("root")
	js, err := jetstream.New(admin.ctl)
	if err != nil {
		t.Fatal(err)
	}
	// As the mailbox of m1 would be made by m1, if it might.
	if _, err := js.CreateConsumer(t.Context(), "fab_t_production_mail", jetstream.ConsumerConfig{
		Durable: "mb-m1", FilterSubject: "fab.t.production.d.m1.*", DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: 5 * time.Second, MaxDeliver: -1, MaxAckPending: 256,
	}); err != nil {
		t.Fatal(err)
	}
	leave(t, root)
	c1, m1 := r.join("c1"), r.join("m1", boxed)
	mallory := r.attacker("mallory")
	for question, data := range questions {
		m := nats.NewMsg(abbreviations.Replace(question))
		m.Reply, m.Data = "fab.t.production.d.m1.c1", []byte(data)
		if err := mallory.ctl.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := mallory.ctl.FlushTimeout(patience); err != nil {
		t.Fatal(err)
	}
	ctx := within(t, patience)
	for m1.Stats().Invalid == 0 {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("no answer was stored: nothing is shown")
		}
	}
	if err := c1.SendMsg(ctx, &fabric.Message{To: "m1", Mode: fabric.Durable, Data: []byte("letter")}); err != nil {
		t.Fatal(err)
	}
	m, err := m1.Receive(ctx)
	if err != nil || m.From != "c1" || string(m.Data) != "letter" {
		t.Fatalf("Receive = %v, %v, want the letter", m, err)
	}
	if err := m.Done(ctx, nil); err != nil {
		t.Error(err)
	}
	none, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if m, err := m1.Receive(none); err == nil {
		t.Errorf("received %q from %s", m.Data, m.From)
	}
	if lines := r.refusals(); len(lines) > 0 {
		t.Errorf("the server refused %d times:\n%s", len(lines), lines)
	}
}

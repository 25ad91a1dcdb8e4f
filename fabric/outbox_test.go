package fabric

import (
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A caller may change what it sent when Send has returned, even if its message was stored
// at the second attempt before the outbox came to the first.
func TestOutboxIsDoneWithWhatWasStored(t *testing.T) {
	s := natstest.Start(t)
	a := startNode(t, s.Connect(), "a", nil, func(c *courierConfig) {
		c.mail = newOffice(Config{Cluster: "c1", Env: "test", Mailbox: Mailbox{Quota: 10}, Logger: slog.New(slog.DiscardHandler)}, &link{nc: c.nc}, c.subjects)
	})
	ctx := deadline(t)
	data := []byte("first")
	send := func() error { return a.SendMsg(ctx, &Message{To: "b", Mode: Durable, Data: data}) }
	if err := send(); err != nil { // makes the stream
		t.Fatal(err)
	}
	nc := s.Connect()
	seen := make(chan string, 10)
	if _, err := nc.Subscribe(a.courier.subj.mail("b"), func(m *nats.Msg) { seen <- string(m.Data) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	p := a.courier.mail
	p.outbox.publishing.Lock() // the outbox has the message, and its turn does not come
	data = []byte("mine")
	sent := make(chan error, 1)
	go func() { sent <- send() }()
	if got := <-seen; got != "mine" { // the second attempt
		t.Errorf("published %q", got)
	}
	select {
	case <-sent:
		p.outbox.publishing.Unlock()
		t.Fatal("Send has returned, and the outbox still has the message")
	case <-time.After(200 * time.Millisecond): // it waits for the outbox
	}
	p.outbox.publishing.Unlock()
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

package natstest

import (
	"strings"

	"github.com/nats-io/nats.go"
)

// Desk hands what is asked of JetStream under the domain [DeskDomain] on to the server, but
// for what take says that it has taken: that is answered by take, or not at all.
func (s *Server) Desk(take func(m *nats.Msg) (taken bool)) {
	s.t.Helper()
	nc := s.Connect(FastOptions()...)
	prefix := "$JS." + DeskDomain + ".API."
	sub, err := nc.Subscribe(prefix+">", func(m *nats.Msg) {
		if take(m) {
			return
		}
		subject := strings.TrimPrefix(m.Subject, prefix)
		if !strings.HasPrefix(subject, "$KV.") { // a write to a bucket of the domain
			subject = "$JS.API." + subject
		}
		_ = nc.PublishMsg(&nats.Msg{Subject: subject, Reply: m.Reply, Header: m.Header, Data: m.Data})
	})
	if err != nil {
		s.t.Fatalf("natstest: desk: %v", err)
	}
	s.t.Cleanup(func() { _ = sub.Unsubscribe() }) // fails if the server is gone
	if err := nc.Flush(); err != nil {            // who asks at once finds it open
		s.t.Fatalf("natstest: desk: %v", err)
	}
}

// DeskDomain is the JetStream domain of [Server.Desk].
const DeskDomain = "desk"

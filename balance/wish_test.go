package balance

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A member whose wish cannot be written, while its lease is renewed, follows the others.
func TestClusterFollowsWhileItsWishIsNotWritten(t *testing.T) {
	for name, mode := range map[string]Mode{"default": Default, "strict": StrictIndex} {
		t.Run(name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				var denied atomic.Bool
				desk := s.Connect(natstest.FastOptions()...)
				sub, err := desk.Subscribe("$JS.desk.API.>", func(m *nats.Msg) {
					if denied.Load() && strings.HasSuffix(m.Subject, ".g.g.a") {
						return
					}
					subject := strings.TrimPrefix(m.Subject, "$JS.desk.API.")
					if !strings.HasPrefix(subject, "$KV.") {
						subject = "$JS.API." + subject
					}
					desk.PublishMsg(&nats.Msg{Subject: subject, Reply: m.Reply, Header: m.Header, Data: m.Data})
				})
				if err != nil {
					t.Fatal(err)
				}
				defer sub.Unsubscribe()
				cfg := Config{Mode: mode}
				z := in(t, s, "z", cfg) // coordinates
				n, err := fabric.Join(limit(t, time.Minute), fabric.Config{
					Cluster: "c", PID: "a", Domain: "desk", Logger: logTo(t, "a"),
					NATS: append(natstest.FastOptions(), nats.InProcessServer(s.Link())),
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { n.Leave(limit(t, time.Second)) })
				a := inBy(t, n, nil, cfg)
				a.awaitShare(t, time.Minute, 0, 1, 2)
				denied.Store(true)
				if err := a.SetWorkers(limit(t, time.Second), 3); err == nil {
					t.Fatal("SetWorkers succeeded without an answer")
				}
				var more []*seen
				for i, pid := range []string{"b", "c", "d"} {
					more = append(more, in(t, s, pid, cfg))
					a.await(t, "the others", func() bool { return a.Share().Total == 3+i })
				}
				denied.Store(false)
				a.await(t, "its wish", func() bool { return a.Share().Workers == 3 && a.Share().Total == 7 })
				for _, m := range append(more, a, z) {
					withdraw(t, m)
				}
			})
		})
	}
}

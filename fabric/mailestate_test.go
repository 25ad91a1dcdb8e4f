package fabric_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// limitDead sets the room for dead letters.
func limitDead(t *testing.T, s *natstest.Server, bytes int64) {
	t.Helper()
	js, err := jetstream.New(s.Connect())
	if err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(t.Context(), "fab_c_production_dead")
	if err != nil {
		t.Fatal(err)
	}
	cfg := st.CachedInfo().Config
	cfg.MaxBytes = bytes
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

// expectSoon is expectMail, of mail that nothing may hold up.
func expectSoon(t *testing.T, n *fabric.Node, data ...string) {
	t.Helper()
	began := time.Now()
	expectMail(t, n, data...)
	if took := time.Since(began); took > 2*ttl {
		t.Errorf("it took %v to receive %v", took, data)
	}
}

// A dead letter for which there is no room does not hold up what came after it, in the
// next process either.
func TestDeadLetterWithoutRoom(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		once := func(c *fabric.Config) { c.Mailbox.Attempts = 1 }
		a := join(t, s, "a")
		mustPost(t, a, "b", "poison")
		b, link := joinLink(t, s, "b", mailbox, once)
		next(t, b)
		crash(b, link)
		time.Sleep(2 * ttl) // its last renewal is old
		limitDead(t, s, 1)

		b = join(t, s, "b", mailbox, once)
		mustPost(t, a, "b", "1", "2")
		expectSoon(t, b, "1", "2")
		time.Sleep(time.Minute)
		mustPost(t, a, "b", "3")
		expectSoon(t, b, "3")
		awaitWaiting(t, a, "b", 1) // the poison
		if dead := letters(t, a); len(dead) != 0 {
			t.Errorf("dead letters %+v", dead)
		}
		limitDead(t, s, 1<<20)
		if dead := awaitLetters(t, a, 1); len(dead) != 1 || string(dead[0].Message.Data) != "poison" {
			t.Errorf("dead letters %+v", dead)
		}
		awaitWaiting(t, a, "b", 0)
	})
}

// What fails again and again in the next process holds nothing up either; the rest of
// what the process before had still comes first, and alone.
func TestInheritedMailFails(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		slow := func(c *fabric.Config) { c.Mailbox.Backoff = time.Minute }
		a := join(t, s, "a")
		mustPost(t, a, "b", "bad", "fine")
		b, link := joinLink(t, s, "b", mailbox, slow)
		next(t, b)
		synctest.Wait() // fine is in the inbox
		crash(b, link)
		time.Sleep(2 * ttl)

		b = join(t, s, "b", mailbox, slow)
		mustPost(t, a, "b", "new")
		m := next(t, b)
		quiet(t, b, ttl) // while it is not done
		done(t, m, errors.New("no"))
		expectSoon(t, b, "fine", "new")
		if string(m.Data) != "bad" {
			t.Errorf("received %q first", m.Data)
		}
		again := next(t, b)
		if string(again.Data) != "bad" || again.Attempt() != 3 {
			t.Errorf("received %q, attempt %d", again.Data, again.Attempt())
		}
		done(t, again, nil)
		awaitWaiting(t, a, "b", 0)
	})
}

// What failed comes again after the Backoff, also if it failed while the server was told
// that it is worked on: that would put it off.
func TestBackoffBesideProgress(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		const count = 200
		a, b := join(t, s, "a"), join(t, s, "b", mailbox)
		var (
			mu     sync.Mutex
			at     time.Time
			failed = make(map[string]bool)
			late   int
		)
		nc := s.Connect()
		_, err := nc.Subscribe("$JS.ACK.fab_c_production_mail.mb-b.>", func(m *nats.Msg) {
			mu.Lock()
			defer mu.Unlock()
			switch word := string(m.Data); {
			case word != "+WPI":
				failed[m.Subject] = true
			case failed[m.Subject]:
				late++
			default:
				at = time.Now()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range count {
			mustPost(t, a, "b", fmt.Sprint(i))
		}
		for range 4 {
			var all []*fabric.Message
			for range count {
				all = append(all, next(t, b))
			}
			time.Sleep(ttl)
			mu.Lock()
			pause := time.Until(at.Add(ttl / 3))
			mu.Unlock()
			time.Sleep(pause)
			for _, m := range all {
				done(t, m, errors.New("no"))
			}
		}
		for range count {
			done(t, next(t, b), nil)
		}
		awaitWaiting(t, a, "b", 0)
		mu.Lock()
		defer mu.Unlock()
		if len(failed) < count || late > 0 {
			t.Errorf("%d of %d were put off", late, len(failed))
		}
	})
}

// What is held does not come again because somebody with another Lease made the mailbox,
// before the process joined or while it is up.
func TestMailboxOfAnotherLease(t *testing.T) {
	create := func(t *testing.T, s *natstest.Server, lease time.Duration) {
		t.Helper()
		if err := fabric.CreateMailboxes(t.Context(), fabric.Config{Cluster: "c", NATS: options(s.Link()), Lease: lease}, "b"); err != nil {
			t.Fatal(err)
		}
	}
	const short, long = 3 * time.Second, 30 * time.Second
	for name, role := range map[string]fabric.Role{"before": fabric.RoleMember, "while it is up": fabric.RoleAdmin} {
		t.Run(name, func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				tune := func(c *fabric.Config) { c.Mailbox.On, c.Role, c.Lease = true, role, long }
				create(t, s, short)
				a := join(t, s, "a", func(c *fabric.Config) { c.Lease = long })
				b := join(t, s, "b", tune)
				mustPost(t, a, "b", "1")
				next(t, b)
				create(t, s, short)
				time.Sleep(4 * long)
				leave(t, b)
				m := next(t, join(t, s, "b", tune))
				if m.Attempt() != 2 {
					t.Errorf("attempt %d, want 2", m.Attempt())
				}
				done(t, m, nil)
			})
		})
	}
}

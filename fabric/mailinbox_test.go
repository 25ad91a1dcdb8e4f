package fabric_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A process that cannot reach the mailbox for a while still gets what its predecessor had
// one at a time.
func TestPoisonAfterOutage(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		mustPost(t, a, "b", "fine 0", "poison", "fine 1", "fine 2")
		expect := func(b *fabric.Node, data string, attempt int) *fabric.Message {
			t.Helper()
			m := next(t, b)
			if string(m.Data) != data || m.Attempt() != attempt {
				t.Fatalf("received %q, attempt %d, want %q, %d", m.Data, m.Attempt(), data, attempt)
			}
			return m
		}
		b, link := joinLink(t, s, "b", mailbox)
		expect(b, "fine 0", 1)
		expect(b, "poison", 1)
		synctest.Wait() // the others are in the inbox
		crash(b, link)
		time.Sleep(2 * ttl) // its last renewal is old

		b, link = joinLink(t, s, "b", mailbox)
		m := expect(b, "fine 0", 2)
		link.CutReplies()
		done(t, m, nil)
		time.Sleep(3 * time.Second) // the mailbox's state is asked for in vain
		link.Heal()
		expect(b, "poison", 2)
		time.Sleep(time.Second)
		crash(b, link)
		time.Sleep(2 * ttl)

		b = join(t, s, "b", mailbox)
		got := make(map[string]int)
		for range 3 {
			m := next(t, b)
			got[string(m.Data)] = m.Attempt()
			done(t, m, nil)
		}
		if got["poison"] != 3 || got["fine 1"] != 2 || got["fine 2"] != 2 { // the second process had not got these
			t.Errorf("received %v (attempts)", got)
		}
		awaitWaiting(t, a, "b", 0)
	})
}

// An inbox that drops the oldest drops no mail: what is not mail makes room, or is
// dropped itself.
func TestDropOldestKeepsMail(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		b := join(t, s, "b", mailbox, func(c *fabric.Config) {
			c.Inbox = fabric.Inbox{Messages: 2, OnFull: fabric.DropOldest}
		})
		await(t, a, "a", "b")
		burst := func(data ...string) {
			t.Helper()
			synctest.Wait() // the mail is in the inbox
			for _, d := range data {
				if err := a.Send(t.Context(), "b", []byte(d)); err != nil {
					t.Fatal(err)
				}
			}
			if err := a.Flush(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		for round, mail := range [][]string{{"m0"}, {"m1", "m2"}, {"m3"}} {
			mustPost(t, a, "b", mail...)
			burst("1", "2", "3")
			want := append(slices.Clone(mail), "3")[:2] // in the order in which they came
			for _, d := range want {
				m := next(t, b)
				if string(m.Data) != d {
					t.Fatalf("round %d: received %q, want %q", round, m.Data, d)
				}
				if m.Mode == fabric.Durable {
					done(t, m, nil)
				}
			}
			quiet(t, b, time.Second)
		}
		if st := b.Stats(); st.Dropped != 2+3+2 || st.Waiting != 0 {
			t.Errorf("%+v", st)
		}
		awaitWaiting(t, a, "b", 0)
		if err := b.Drain(within(t, 10*time.Second)); err != nil {
			t.Errorf("Drain: %v", err)
		}
	})
}

// A handler may take longer than the server's patience: the message does not come again.
func TestSlowHandler(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b", mailbox)
		mustPost(t, a, "b", "1", "2")
		m := next(t, b)
		time.Sleep(20 * ttl)
		synctest.Wait()
		done(t, m, nil)
		expectMail(t, b, "2")
		quiet(t, b, 3*ttl)
	})
}

package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// mailbox makes a node's Config one with a mailbox.
func mailbox(c *fabric.Config) { c.Mailbox.On = true }

func post(ctx context.Context, n *fabric.Node, to fabric.PID, data string) error {
	return n.SendMsg(ctx, &fabric.Message{To: to, Mode: fabric.Durable, Data: []byte(data)})
}

func mustPost(t *testing.T, n *fabric.Node, to fabric.PID, data ...string) {
	t.Helper()
	for _, d := range data {
		if err := post(within(t, time.Minute), n, to, d); err != nil {
			t.Fatalf("post %q to %s: %v", d, to, err)
		}
	}
}

// next receives a message that must be there, but does not finish it.
func next(t *testing.T, n *fabric.Node) *fabric.Message {
	t.Helper()
	m, err := n.Receive(within(t, 2*time.Minute))
	if err != nil {
		t.Fatalf("%s receives nothing: %v", n.PID(), err)
	}
	return m
}

func done(t *testing.T, m *fabric.Message, err error) {
	t.Helper()
	if e := m.Done(t.Context(), err); e != nil {
		t.Errorf("Done(%q): %v", m.Data, e)
	}
}

// expectMail receives, in order, and finishes.
func expectMail(t *testing.T, n *fabric.Node, data ...string) {
	t.Helper()
	for _, d := range data {
		m := next(t, n)
		if string(m.Data) != d || m.Mode != fabric.Durable {
			t.Fatalf("%s received %q (%v, attempt %d) from %s, want %q", n.PID(), m.Data, m.Mode, m.Attempt(), m.From, d)
		}
		done(t, m, nil)
	}
}

// quiet fails if anything comes for a while.
func quiet(t *testing.T, n *fabric.Node, d time.Duration) {
	t.Helper()
	if m, err := n.Receive(within(t, d)); err == nil {
		t.Fatalf("%s received %q from %s, attempt %d, and should have got nothing", n.PID(), m.Data, m.From, m.Attempt())
	}
}

// letters returns the dead letters there are.
func letters(t *testing.T, n *fabric.Node) (all []*fabric.DeadLetter) {
	t.Helper()
	for d, err := range n.DeadLetters(within(t, time.Minute)) {
		if err != nil {
			t.Fatalf("DeadLetters: %v", err)
		}
		all = append(all, d)
	}
	return all
}

func awaitLetters(t *testing.T, n *fabric.Node, count int) []*fabric.DeadLetter {
	t.Helper()
	for range 600 {
		if all := letters(t, n); len(all) >= count {
			return all
		}
		time.Sleep(100 * time.Millisecond) // fake time, mostly
	}
	t.Fatalf("%d dead letters, want %d", len(letters(t, n)), count)
	return nil
}

// waiting returns how many messages wait for a PID.
func waiting(t *testing.T, n *fabric.Node, pid fabric.PID) int {
	t.Helper()
	counts, err := n.Mail(within(t, time.Minute))
	if err != nil {
		t.Fatalf("Mail: %v", err)
	}
	for _, c := range counts {
		if c.PID == pid {
			return c.Waiting
		}
	}
	return 0
}

func awaitWaiting(t *testing.T, n *fabric.Node, pid fabric.PID, want int) {
	t.Helper()
	for range 600 {
		if waiting(t, n, pid) == want {
			return
		}
		time.Sleep(100 * time.Millisecond) // fake time, mostly
	}
	t.Fatalf("%d messages wait for %s, want %d", waiting(t, n, pid), pid, want)
}

// Mail is kept for a PID that has never joined, in order, with all that a message has.
func TestMailBeforeJoin(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		if got := letters(t, a); len(got) != 0 {
			t.Errorf("dead letters before anything: %v", got)
		}
		mustPost(t, a, "b", "1", "2", "3")
		m := fabric.Message{To: "b", Mode: fabric.Durable, ID: 77, Type: "T7", Data: []byte("4"), Header: nats.Header{"K": {"v", "w"}}}
		if err := a.SendMsg(t.Context(), &m); err != nil {
			t.Fatal(err)
		}
		if len(m.Header) != 1 {
			t.Errorf("the caller's header was changed: %v", m.Header)
		}
		if n := waiting(t, a, "b"); n != 4 {
			t.Errorf("%d wait, want 4", n)
		}
		b := join(t, s, "b", mailbox)
		expectMail(t, b, "1", "2", "3")
		got := next(t, b)
		if got.From != "a" || got.To != "b" || got.ID != 77 || got.Type != "T7" || string(got.Data) != "4" ||
			got.Attempt() != 1 || len(got.Header) != 1 || !slices.Equal(got.Header["K"], []string{"v", "w"}) {
			t.Errorf("received %+v, attempt %d", got, got.Attempt())
		}
		done(t, got, nil)
		if err := got.Done(t.Context(), nil); !errors.Is(err, fabric.ErrReplied) {
			t.Errorf("Done twice: %v", err)
		}
		awaitWaiting(t, a, "b", 0)
		mustPost(t, b, "b", "to myself")
		expectMail(t, b, "to myself")
		if st := a.Stats(); st.Sent != 4 {
			t.Errorf("%+v", st)
		}
	})
}

// A broadcast reaches who is down: vibhor1403/Raft's test of availability. One server of
// five is down while the others broadcast, and has everything when it starts.
func TestAvailability(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nodes := make(map[string]*fabric.Node)
		pids := []string{"1", "2", "3", "4", "5"}
		for _, pid := range pids {
			nodes[pid] = join(t, s, pid, mailbox)
		}
		await(t, nodes["1"], "1", "2", "3", "4", "5")
		leave(t, nodes["5"])
		await(t, nodes["1"], "1", "2", "3", "4")
		const each = 20
		for i := range each {
			for _, pid := range pids[:4] {
				mustPost(t, nodes[pid], fabric.Everyone, fmt.Sprintf("%s-%d", pid, i))
			}
		}
		nodes["5"] = join(t, s, "5", mailbox)
		for _, pid := range pids {
			at := make(map[fabric.PID]int)
			from := 3
			if pid == "5" {
				from = 4
			}
			for range from * each {
				m := next(t, nodes[pid])
				if want := fmt.Sprintf("%s-%d", m.From, at[m.From]); string(m.Data) != want || m.From == nodes[pid].PID() {
					t.Fatalf("%s received %q from %s, want %q", pid, m.Data, m.From, want)
				}
				at[m.From]++
				done(t, m, nil)
			}
			quiet(t, nodes[pid], time.Second)
		}
	})
}

// A process that ends before it is done gets its mail again, in order and before what
// came later.
func TestMailAfterCrash(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		b, link := joinLink(t, s, "b", mailbox)
		mustPost(t, a, "b", "1", "2", "3", "4")
		expectMail(t, b, "1")
		for range 3 {
			next(t, b) // received, not done
		}
		awaitWaiting(t, a, "b", 3)
		crash(b, link)
		mustPost(t, a, "b", "5", "6")
		b = join(t, s, "b", mailbox)
		for _, want := range []string{"2", "3", "4", "5", "6"} {
			m := next(t, b)
			if attempt := 1 + btoi(want < "5"); string(m.Data) != want || m.Attempt() != attempt {
				t.Errorf("received %q, attempt %d, want %q, %d", m.Data, m.Attempt(), want, attempt)
			}
			done(t, m, nil)
		}
		quiet(t, b, 3*ttl)
		if st := b.Stats(); st.Parked != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A process that leaves gives back what it has not done; the next gets it at once.
func TestMailAfterLeave(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b", mailbox)
		mustPost(t, a, "b", "1", "2", "3")
		m := next(t, b)
		leave(t, b)
		if err := m.Done(t.Context(), nil); !errors.Is(err, fabric.ErrClosed) {
			t.Errorf("Done after Leave: %v", err)
		}
		b = join(t, s, "b", mailbox)
		began := time.Now()
		got := make(map[string]int)
		for range 3 {
			m := next(t, b)
			got[string(m.Data)] += m.Attempt()
			done(t, m, nil)
		}
		if took := time.Since(began); took > ttl/2 || got["1"] != 2 || got["2"] == 0 || got["3"] == 0 {
			t.Errorf("received %v (attempts), and it took %v", got, took)
		}
		quiet(t, b, 3*ttl)
	})
}

// What came while a process left is not behind what it gave back by more than that takes.
func TestMailBesideWhatWasGivenBack(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b", mailbox)
		mustPost(t, a, "b", "1")
		next(t, b)
		joined := make(chan *fabric.Node)
		go func() { joined <- join(t, s, "c") }() // so that b need not wait long for a view
		time.Sleep(25 * time.Millisecond)
		leave(t, b)
		mustPost(t, a, "b", "2", "3")
		b = join(t, s, "b", mailbox)
		began := time.Now()
		expectMail(t, b, "1", "2", "3")
		if took := time.Since(began); took > ttl/10 {
			t.Errorf("it took %v", took)
		}
		<-joined
	})
}

// A message that ends every process which receives it becomes a dead letter, and those
// that waited behind it in the same inboxes do not.
func TestPoisonEndsProcesses(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		mustPost(t, a, "b", "fine 0", "poison", "fine 1", "fine 2")
		got := make(map[string]int)
		for len(letters(t, a)) == 0 {
			b, link := joinLink(t, s, "b", mailbox, func(c *fabric.Config) { c.Mailbox.Attempts = 3 })
			for {
				m, err := b.Receive(within(t, time.Minute))
				if err != nil {
					break // it was parked before it was handed out
				}
				got[string(m.Data)]++
				if string(m.Data) == "poison" {
					crash(b, link)
					time.Sleep(2 * ttl) // its last renewal is old
					break
				}
				done(t, m, nil)
			}
		}
		// That fine 0 was done may have been lost with the process that said so.
		if got["poison"] != 3 || got["fine 0"] < 1 || got["fine 1"] != 1 || got["fine 2"] != 1 {
			t.Errorf("received %v", got)
		}
		dead := awaitLetters(t, a, 1)
		if len(dead) != 1 || string(dead[0].Message.Data) != "poison" || dead[0].Attempts != 3 || !strings.Contains(dead[0].Reason, "ended") {
			t.Errorf("dead letters %+v", dead)
		}
	})
}

// A handler's error brings the message again, later each time, and then to the dead
// letters, with who, why and how often.
func TestDeadLetter(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b", mailbox)
		var at []time.Duration
		var attempts []int
		began := time.Now()
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ended <- b.Handle(ctx, 1, func(_ context.Context, m *fabric.Message) ([]byte, error) {
				if string(m.Data) == "good" {
					return nil, nil
				}
				at = append(at, time.Since(began).Round(100*time.Millisecond))
				attempts = append(attempts, m.Attempt())
				copy(m.Data, "???") // it belongs to the receiver
				return nil, fmt.Errorf("no %d", m.Attempt())
			})
		}()
		bad := fabric.Message{To: "b", Mode: fabric.Durable, ID: 9, Type: "T", Header: nats.Header{"K": {"v"}}, Data: []byte("bad")}
		if err := a.SendMsg(t.Context(), &bad); err != nil {
			t.Fatal(err)
		}
		mustPost(t, a, "b", "good")
		dead := awaitLetters(t, a, 1)
		stop()
		<-ended
		want := []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second}
		if !slices.Equal(attempts, []int{1, 2, 3, 4, 5}) || len(at) != 5 {
			t.Fatalf("attempts %v at %v", attempts, at)
		}
		for i := range at {
			if d := at[i] - want[i]; d < 0 || d > 500*time.Millisecond {
				t.Errorf("attempts at %v, want %v", at, want)
			}
		}
		d := dead[0]
		if len(dead) != 1 || d.Message.From != "a" || d.Message.To != "b" || d.Message.ID != 9 || d.Message.Type != "T" ||
			string(d.Message.Data) != "bad" || d.Message.Header.Get("K") != "v" || len(d.Message.Header) != 1 ||
			d.Reason != "no 5" || d.Attempts != 5 || d.Subject != "fab.c.production.d.b.a" || d.Cut != 0 || d.Parked.IsZero() {
			t.Errorf("dead letter %+v of %+v", d, d.Message)
		}
		synctest.Wait() // the letter is there; b has yet to hear so
		synctest.Wait() // it is counted after it is stored
		if st := b.Stats(); st.Parked != 1 || st.Invalid != 0 {
			t.Errorf("%+v", st)
		}
		awaitWaiting(t, a, "b", 0)
	})
}

// The server restarts while messages are with the receiver, and while it sends.
func TestMailOverServerRestart(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b", mailbox)
		mustPost(t, a, "b", "1", "2", "3")
		m := next(t, b)
		s.Restart()
		deadline := within(t, time.Minute)
		for post(deadline, a, "b", "4") != nil { // ErrDisconnected: nothing was sent
			time.Sleep(100 * time.Millisecond)
		}
		done(t, m, nil)
		expectMail(t, b, "2", "3", "4")
		quiet(t, b, 6*ttl)
		awaitWaiting(t, a, "b", 0)
	})
}

// The sender may have a message of its own ID stored twice: it is, once.
func TestMailIsStoredOnce(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, c, b := join(t, s, "a"), join(t, s, "c"), join(t, s, "b", mailbox)
		for _, n := range []*fabric.Node{a, a, c} {
			if err := n.SendMsg(t.Context(), &fabric.Message{To: "b", Mode: fabric.Durable, ID: 2, Data: []byte(n.PID() + " named")}); err != nil {
				t.Fatal(err)
			}
		}
		// The node's own numbers reach 2 as well.
		mustPost(t, a, "b", "a 1", "a 2", "a 3")
		expectMail(t, b, "a named", "c named", "a 1", "a 2", "a 3")
		quiet(t, b, time.Second)
	})
}

// An acknowledgement that is lost is asked for again, and the message is stored once.
func TestMailAckLost(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		b := join(t, s, "b", mailbox)
		a, link := joinLink(t, s, "a")
		mustPost(t, a, "b", "0")
		link.CutReplies()
		err := make(chan error)
		go func() { err <- post(within(t, 30*time.Second), a, "b", "1") }()
		expectMail(t, b, "0", "1")
		link.Kill()
		link.Heal()
		if err := <-err; err != nil {
			t.Errorf("post: %v", err)
		}
		link.CutReplies()
		if err := post(within(t, 3*time.Second), a, "b", "2"); !errors.Is(err, fabric.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("post without an answer: %v", err)
		}
		link.Kill()
		link.Heal()
		expectMail(t, b, "2")
		quiet(t, b, 2*time.Second)
	})
}

// A message that was refused, and of which another attempt is under way, may be stored: the
// sender is not told that it was not. If the refusal came where others were acknowledged, it
// was not looked at.
func TestMailRefusedAndStored(t *testing.T) {
	for id, want := range map[uint64]error{0: nil, 7: fabric.ErrUnknownOutcome} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			b := join(t, s, "b", mailbox, func(c *fabric.Config) { c.Mailbox.Quota = 1 })
			a, link := joinLink(t, s, "a")
			mustPost(t, a, "b", "0")
			m := next(t, b)
			link.CutReplies()
			err := make(chan error)
			go func() {
				err <- a.SendMsg(within(t, 30*time.Second), &fabric.Message{To: "b", ID: id, Mode: fabric.Durable, Data: []byte("1")})
			}()
			time.Sleep(500 * time.Millisecond) // it is refused
			done(t, m, nil)
			time.Sleep(time.Second) // it is tried again, and stored
			link.Heal()
			if err := <-err; !errors.Is(err, want) || errors.Is(err, fabric.ErrMailboxFull) {
				t.Errorf("post, id %d: %v, want %v", id, err, want)
			}
			expectMail(t, b, "1")
			quiet(t, b, 2*time.Second)
		})
	}
}

package election_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

func put(t *testing.T, term *election.Term, key, value string) {
	t.Helper()
	if err := term.Put(within(t, 10*time.Second), key, []byte(value)); err != nil {
		t.Errorf("Put %s: %v", key, err)
	}
}

func wantKept(t *testing.T, term *election.Term, key, want string) {
	t.Helper()
	got, err := term.Get(within(t, 10*time.Second), key)
	if err != nil || string(got) != want {
		t.Errorf("Get %s = %q, %v, want %q", key, got, err, want)
	}
}

func TestPutIsThereForTheNextLeader(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		ta := campaign(t, of(t, join(t, s, "a"), 0))
		if got, err := ta.Get(t.Context(), "cursor"); got != nil || err != nil {
			t.Errorf("Get of what nobody put = %q, %v, want nil", got, err)
		}
		values := map[string]string{
			"cursor": "41", "empty": "", "binary": "\xff\x00\xfe", "markup": `<a href="x">&"`,
			"large": strings.Repeat("\x01", election.MaxState), "unread": "7",
		}
		for key, value := range values {
			put(t, ta, key, value)
			put(t, ta, key, value)
		}
		for key, value := range values {
			wantKept(t, ta, key, value)
		}
		for _, key := range []string{"", "a.b", "*", "ä"} {
			var name *election.NameError
			if err := ta.Put(t.Context(), key, nil); !errors.As(err, &name) {
				t.Errorf("Put under %q = %v, want a *NameError", key, err)
			}
			if _, err := ta.Get(t.Context(), key); !errors.As(err, &name) {
				t.Errorf("Get of %q = %v, want a *NameError", key, err)
			}
		}
		if err := ta.Put(t.Context(), "k", make([]byte, election.MaxState+1)); !errors.Is(err, election.ErrTooLarge) {
			t.Errorf("Put of too much = %v, want ErrTooLarge", err)
		}
		resign(t, ta)
		if err := ta.Put(t.Context(), "cursor", nil); !errors.Is(err, election.ErrFenced) {
			t.Errorf("Put after Resign = %v, want ErrFenced", err)
		}
		if _, err := ta.Get(t.Context(), "cursor"); !errors.Is(err, election.ErrFenced) {
			t.Errorf("Get after Resign = %v, want ErrFenced", err)
		}
		tb := campaign(t, of(t, join(t, s, "b"), 0))
		put(t, tb, "unread", "8")
		values["unread"] = "8"
		for key, value := range values {
			wantKept(t, tb, key, value)
		}
		resign(t, tb)
	})
}

// The server refuses a leader that was deposed, whatever it believes, in one round
// trip; also what it writes under a key that the next leader has not touched.
func TestPutOfADeposedLeader(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		for i, hold := range []bool{false, true} {
			a, la := joinLink(t, s, fmt.Sprint("a", i))
			e := of(t, a, 2*time.Second)
			if hold {
				e = holding(t, a)
			}
			ta := campaign(t, e)
			put(t, ta, "cursor", "1")
			la.Cut()
			tb := campaign(t, of(t, join(t, s, fmt.Sprint("b", i)), 0))
			put(t, tb, "cursor", "2")
			la.Heal()
			for _, key := range []string{"cursor", "other"} {
				if err := ta.Put(within(t, 10*time.Second), key, []byte("3")); !errors.Is(err, election.ErrFenced) {
					t.Errorf("Put %s of a deposed leader = %v, want ErrFenced", key, err)
				}
			}
			if _, err := ta.Get(within(t, 10*time.Second), "cursor"); !errors.Is(err, election.ErrFenced) {
				t.Errorf("Get of a deposed leader = %v, want ErrFenced", err)
			}
			wantKept(t, tb, "cursor", "2")
			wantKept(t, tb, "other", "")
			resign(t, tb)
		}
	})
}

// A write whose outcome is unknown is stored or not, and never after a later one; the
// term goes on under its token, and observers see nothing.
func TestPutInDoubt(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		b := of(t, join(t, s, "b"), 0)
		ta := campaign(t, of(t, a, 0))
		put(t, ta, "cursor", "1")
		reports := make(chan election.Leader, 10)
		go func() {
			for l, err := range b.Leaders(t.Context()) {
				if err == nil {
					reports <- l
				}
			}
		}()
		<-reports
		for i := range 3 {
			la.CutReplies()
			err := ta.Put(within(t, 500*time.Millisecond), "cursor", []byte("doubtful"))
			if !errors.Is(err, election.ErrUnknown) || errors.Is(err, election.ErrFenced) {
				t.Errorf("Put without an answer = %v, want ErrUnknown", err)
			}
			la.Heal()
			switch i {
			case 0:
				put(t, ta, "cursor", "2")
				wantKept(t, ta, "cursor", "2")
			case 1:
				wantKept(t, ta, "cursor", "doubtful") // it was stored, and its answer lost
			case 2:
				// What waits until the doubtful one cannot land any more is not sent.
				la.CutReplies()
				if err := ta.Put(within(t, 500*time.Millisecond), "cursor", []byte("unsent")); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, election.ErrUnknown) {
					t.Errorf("Put that was not sent = %v, want DeadlineExceeded without ErrUnknown", err)
				}
				la.Heal()
			}
			// The first attempt of long ago arrives only now: a guard under the revision at
			// which the claim was taken holds no longer.
			m := nats.NewMsg("$KV.fab_c_production.e.x.cursor")
			m.Data = []byte(`{"key":"e.x.cursor","pid":"a","token":1,"text":"late","nonce":"n"}`)
			m.Header.Set("Nats-Expected-Last-Subject-Sequence", fmt.Sprint(ta.Token()))
			m.Header.Set("Nats-Expected-Last-Subject-Sequence-Subject", "$KV.fab_c_production.c.e.x")
			answer, err := s.Connect().RequestMsg(m, time.Second)
			if err != nil || !bytes.Contains(answer.Data, []byte("wrong last sequence")) {
				t.Errorf("a late write was answered %s, %v; want it refused", answer.Data, err)
			}
			if !ta.Valid() {
				t.Fatal("the term ended")
			}
		}
		if l, err := b.Leader(t.Context()); err != nil || l.Token != ta.Token() || l.Term != 1 {
			t.Errorf("Leader = %+v, %v; want term 1, token %d", l, err, ta.Token())
		}
		if len(reports) > 0 {
			t.Errorf("reported %+v", <-reports)
		}
		resign(t, ta) // while in doubt
		tb := campaign(t, b)
		if tb.Number() != 2 || tb.Token() <= ta.Token() {
			t.Errorf("term %d token %d after 1, %d", tb.Number(), tb.Token(), ta.Token())
		}
		wantKept(t, tb, "cursor", "doubtful")
		resign(t, tb)
	})
}

// A write that is under way when the term is given up was sent: it is not known to be
// refused. One that was never sent is.
func TestPutBesideResign(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		ea, eb := of(t, a, 0), of(t, join(t, s, "b"), 0)
		for i, give := range []func(*election.Term, context.Context) error{
			(*election.Term).Resign,
			func(term *election.Term, ctx context.Context) error {
				_, err := term.Transfer(ctx, "b")
				return err
			},
		} {
			ta := campaign(t, ea)
			next := inBackground(t, eb)
			time.Sleep(time.Second) // b stands
			want := fmt.Sprint("beside ", i)
			la.CutReplies()
			first, second := make(chan error, 1), make(chan error, 1)
			go func() { first <- ta.Put(within(t, time.Minute), "cursor", []byte(want)) }()
			time.Sleep(50 * time.Millisecond)
			go func() { second <- ta.Put(within(t, time.Minute), "cursor", []byte("never sent")) }()
			time.Sleep(50 * time.Millisecond)
			if err := give(ta, within(t, 100*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("giving up without an answer = %v, want DeadlineExceeded", err)
			}
			if err := <-first; !errors.Is(err, election.ErrFenced) || !errors.Is(err, election.ErrUnknown) {
				t.Errorf("Put under way = %v, want ErrFenced and ErrUnknown", err)
			}
			if err := <-second; !errors.Is(err, election.ErrFenced) || errors.Is(err, election.ErrUnknown) {
				t.Errorf("Put that waited = %v, want ErrFenced alone", err)
			}
			la.Heal()
			tb := <-next
			wantKept(t, tb, "cursor", want)
			resign(t, tb)
		}
	})
}

// Puts of many goroutines are made one after the other, and all of them.
func TestConcurrentPuts(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		term := campaign(t, of(t, join(t, s, "a"), 0))
		done := make(chan error)
		const n = 50
		for i := range n {
			go func() { done <- term.Put(within(t, time.Minute), fmt.Sprint("k", i), fmt.Append(nil, i)) }()
		}
		for range n {
			if err := <-done; err != nil {
				t.Errorf("Put: %v", err)
			}
		}
		for i := range n {
			wantKept(t, term, fmt.Sprint("k", i), fmt.Sprint(i))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := term.Put(ctx, "k0", []byte("no")); !errors.Is(err, context.Canceled) {
			t.Errorf("Put with a context that has ended = %v", err)
		}
		resign(t, term)
	})
}

func TestForeignEntry(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		term := campaign(t, of(t, join(t, s, "a"), 0))
		if _, err := s.Connect().Request("$KV.fab_c_production.e.x.k", []byte("garbage"), time.Second); err != nil {
			t.Fatal(err)
		}
		if _, err := term.Get(within(t, time.Second), "k"); !errors.Is(err, election.ErrForeign) {
			t.Errorf("Get of garbage = %v, want ErrForeign", err)
		}
		resign(t, term)
	})
}

package fabric

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// startMailer starts a node of a fabric with durable messages.
func startMailer(t *testing.T, s *natstest.Server, pid PID) *Node {
	t.Helper()
	return startNode(t, s.Connect(), pid, nil, func(c *courierConfig) {
		c.mail = newOffice(Config{Cluster: "c1", Env: "test", Mailbox: Mailbox{Quota: 10_000}, Logger: slog.New(slog.DiscardHandler)}, &link{nc: c.nc}, c.subjects)
	})
}

func (p *mailer) idlePostings() []*posting {
	p.idle.mu.Lock()
	defer p.idle.mu.Unlock()
	return append([]*posting(nil), p.idle.all...)
}

// A posting is used again when it was stored at the first attempt, and only then: of one
// that was repeated or given up, an attempt may still be answered, or be in the outbox.
func TestPostingIsUsedAgain(t *testing.T) {
	s := natstest.Start(t)
	a := startMailer(t, s, "a")
	p := a.courier.mail
	send := func(ctx context.Context) error {
		return a.SendMsg(ctx, &Message{To: "b", Mode: Durable, Data: []byte("data")})
	}
	must := func() *posting {
		t.Helper()
		if err := send(deadline(t)); err != nil {
			t.Fatal(err)
		}
		idle := p.idlePostings()
		if len(idle) != 1 {
			t.Fatalf("%d postings are kept, want 1", len(idle))
		}
		return idle[0]
	}
	first := must()
	reply := first.reply
	if again := must(); again != first || again.reply != reply {
		t.Error("it is not used again")
	}

	// The outbox has the message, and its turn does not come: the repetition is stored.
	p.outbox.publishing.Lock()
	sent := make(chan error, 1)
	go func() { sent <- send(deadline(t)) }()
	time.Sleep(repeatAfter * 3 / 2)
	if idle := p.idlePostings(); len(idle) > 0 {
		t.Error("it is kept while the outbox has it")
	}
	p.outbox.publishing.Unlock()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if idle := p.idlePostings(); len(idle) > 0 {
		t.Error("it is kept, and an attempt was not answered")
	}
	second := must()
	if second == first || second.reply == reply {
		t.Error("what was repeated is used again")
	}

	// Its ctx is over before its turn comes.
	p.outbox.publishing.Lock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	go func() { sent <- send(ctx) }()
	time.Sleep(100 * time.Millisecond)
	p.outbox.publishing.Unlock()
	if err := <-sent; !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("given up: %v", err)
	}
	if idle := p.idlePostings(); len(idle) > 0 {
		t.Error("it is kept, and was given up")
	}
	third := must()
	if third == second || third.reply == second.reply {
		t.Error("what was given up is used again")
	}

	for name, s := range map[string]*posting{
		"the outbox has it":   {tries: 1},
		"it was repeated":     {tries: 2},
		"it is a dead letter": {tries: 1, dead: true},
	} {
		s.handed.Store(name != "the outbox has it")
		if p.reuse(s); len(p.idlePostings()) != 1 {
			t.Errorf("%s, and it is used again", name)
		}
	}
}

// What comes before a message was published is no answer to it, and a refusal is not
// definite while the outbox may still publish it.
func TestPostingAnsweredBeforeItsTurn(t *testing.T) {
	s := natstest.Start(t)
	a := startMailer(t, s, "a")
	p := a.courier.mail
	send := func() error {
		return a.SendMsg(deadline(t), &Message{To: "b", Mode: Durable, Data: []byte("data")})
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(send())
	nc := s.Connect()
	js, err := jetstream.New(nc)
	must(err)
	st, err := js.Stream(t.Context(), "fab_c1_test_mail")
	must(err)
	cfg := st.CachedInfo().Config
	published, err := nc.SubscribeSync(a.courier.subj.mail("b"))
	must(err)
	const (
		stored  = `{"stream":"fab_c1_test_mail","seq":9223372036854775807}`
		refused = `{"error":{"code":503,"err_code":10077,"description":"d"},"stream":"fab_c1_test_mail","seq":0}`
	)
	for _, c := range []struct {
		first, second string
		want          error
	}{{refused, refused, ErrUnknownOutcome}, {stored, refused, ErrUnknownOutcome}, {stored, stored, nil}} {
		cfg.NoAck = false
		_, err = js.UpdateStream(t.Context(), cfg)
		must(err)
		must(send())
		used := p.idlePostings()[0].reply
		for at := ""; at != used; { // what was published until now
			m, err := published.NextMsg(5 * time.Second)
			must(err)
			at = m.Reply
		}
		cfg.NoAck = true
		_, err = js.UpdateStream(t.Context(), cfg)
		must(err)

		p.outbox.publishing.Lock()
		sent := make(chan error, 1)
		go func() { sent <- send() }()
		var at string
		for range 50 { // it may not be awaited yet
			must(nc.Publish(used, []byte(c.first)))
			if m, err := published.NextMsg(10 * time.Millisecond); err == nil {
				at = m.Reply
				break
			}
		}
		if at == "" || at == used {
			t.Errorf("repeated at %q after %s at %q", at, c.first, used)
		}
		if at != "" {
			must(nc.Publish(at, []byte(c.second)))
			must(nc.Flush())
			time.Sleep(50 * time.Millisecond)
		}
		p.outbox.publishing.Unlock()
		if err := <-sent; !errors.Is(err, c.want) {
			t.Errorf("Send after %s and %s: %v, want %v", c.first, c.second, err, c.want)
		}
	}
}

// Nobody can tell the id of a message before it is sent, no two are the same, and one that
// the caller numbered has the same id again.
func TestMailIDs(t *testing.T) {
	s := natstest.Start(t)
	lives := []*mailer{startMailer(t, s, "a").courier.mail, startMailer(t, s, "a").courier.mail}
	ids := map[string]string{}
	add := func(what, id string) {
		t.Helper()
		if other, ok := ids[id]; ok {
			t.Errorf("%s and %s have the id %s", what, other, id)
		}
		ids[id] = what
	}
	for life, p := range lives {
		for _, to := range []PID{"b", "c"} {
			o := outgoing{id: 7}
			chosen := p.address(to, true, &o).mailID
			if again := p.address(to, true, &o).mailID; again != chosen {
				t.Errorf("a message to %s has the id %s, then %s", to, chosen, again)
			}
			add(fmt.Sprintf("life %d, to %s, chosen", life, to), chosen)
			for i := range 100 {
				add(fmt.Sprintf("life %d, to %s, of the node, %d", life, to, i), p.address(to, false, &o).mailID)
			}
		}
	}
	ends := map[string]bool{}
	for id := range ids {
		_, end, _ := strings.Cut(id, "-")
		if ends[end] || len(end) != secretLen {
			t.Errorf("%s ends like another", id)
		}
		ends[end] = true
	}
}

// Postings that are used again are of no use to a stream that begins its numbers anew, and
// hold up nobody.
func TestPostingsOfAStreamThatIsGone(t *testing.T) {
	s := natstest.Start(t)
	a := startMailer(t, s, "a")
	p := a.courier.mail
	const count = 20
	together := func() (worst time.Duration) {
		t.Helper()
		p.outbox.publishing.Lock() // so that each takes another posting
		var mu sync.Mutex
		var wg sync.WaitGroup
		began := time.Now()
		for range count {
			wg.Go(func() {
				if err := a.SendMsg(deadline(t), &Message{To: "b", Mode: Durable}); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				worst = max(worst, time.Since(began))
			})
		}
		time.Sleep(100 * time.Millisecond)
		p.outbox.publishing.Unlock()
		wg.Wait()
		return worst
	}
	if err := a.SendMsg(deadline(t), &Message{To: "b", Mode: Durable}); err != nil { // makes the stream
		t.Fatal(err)
	}
	together()
	if n := len(p.idlePostings()); n != count {
		t.Fatalf("%d postings are kept, want %d", n, count)
	}
	js, err := jetstream.New(s.Connect())
	if err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(t.Context(), "fab_c1_test_mail")
	if err != nil {
		t.Fatal(err)
	}
	cfg := st.CachedInfo().Config
	if err := js.DeleteStream(t.Context(), cfg.Name); err != nil {
		t.Fatal(err)
	}
	cfg.FirstSeq = 1
	if st, err = js.CreateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if took := together(); took > repeatAfter {
		t.Errorf("it took %v", took)
	}
	info, err := st.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != count {
		t.Errorf("%d messages are stored, want %d", info.State.Msgs, count)
	}
}

// What is sent may be changed as soon as Send returned, whatever its posting is used for
// then: each message is what it was, and is stored once.
func TestPostingsKeepMessagesApart(t *testing.T) {
	s := natstest.Start(t)
	a := startMailer(t, s, "a")
	if err := a.SendMsg(deadline(t), &Message{To: "x", Mode: Durable}); err != nil { // makes the stream
		t.Fatal(err)
	}
	const senders, each = 16, 50
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			data, header := make([]byte, 0, 64), nats.Header{"K": {""}}
			for n := range each {
				data = fmt.Appendf(data[:0], "%d %d", i, n)
				m := &Message{To: PID(fmt.Sprintf("b%d", i%3)), Mode: Durable, Data: data}
				if n%2 == 0 {
					header["K"][0], m.Header = string(data), header
				}
				ctx, cancel := deadline(t), func() {}
				if n%10 == 9 { // some are given up
					ctx, cancel = context.WithTimeout(ctx, time.Duration(n)*10*time.Microsecond)
				}
				if err := a.SendMsg(ctx, m); err != nil && n%10 != 9 {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	js, err := jetstream.New(s.Connect())
	if err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(t.Context(), "fab_c1_test_mail")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for seq, state := st.CachedInfo().State.FirstSeq, st.CachedInfo().State; seq <= state.LastSeq; seq++ {
		m, err := st.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		var i, n int
		if k, err := fmt.Sscanf(string(m.Data), "%d %d", &i, &n); k != 2 || err != nil {
			continue // the one that made the stream
		}
		got[string(m.Data)]++
		want := ""
		if n%2 == 0 {
			want = string(m.Data)
		}
		if k := m.Header.Get("K"); k != want || m.Subject != fmt.Sprintf("fab.c1.test.d.b%d.a", i%3) {
			t.Errorf("%s has the header %q and the subject %s", m.Data, k, m.Subject)
		}
	}
	for i := range senders {
		for n := range each {
			if k := got[fmt.Sprintf("%d %d", i, n)]; k > 1 || k == 0 && n%10 != 9 {
				t.Errorf("%d %d is stored %d times", i, n, k)
			}
		}
	}
}

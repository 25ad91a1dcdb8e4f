package fabric_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A sender has its share of a mailbox, and is told when that is used up.
func TestMailQuota(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		quota := func(c *fabric.Config) { c.Mailbox.Quota = 3 }
		a, c := join(t, s, "a", quota), join(t, s, "c", quota)
		mustPost(t, a, "b", "1", "2", "3")
		err := post(t.Context(), a, "b", "4")
		if !errors.Is(err, fabric.ErrMailboxFull) || errors.Is(err, fabric.ErrUnknownOutcome) {
			t.Errorf("over the quota: %v", err)
		}
		mustPost(t, c, "b", "c1")
		mustPost(t, a, "other", "1")
		b := join(t, s, "b", mailbox)
		expectMail(t, b, "1", "2", "3", "c1")
		awaitWaiting(t, a, "b", 0)
		mustPost(t, a, "b", "5")
		expectMail(t, b, "5")
		await(t, a, "a", "b", "c")
		mustPost(t, a, "c", "1", "2", "3")
		err = post(t.Context(), a, fabric.Everyone, "all")
		if u, ok := errors.AsType[fabric.Undeliverable](err); !ok || u.To != "c" || !errors.Is(err, fabric.ErrMailboxFull) {
			t.Errorf("broadcast, c's mailbox being full: %v", err)
		}
		expectMail(t, b, "all")
	})
}

// What is in the stream and is not a fabric's message is parked, counted, and in nobody's
// way. A plain client may leave a message.
func TestForeignMail(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b", mailbox)
		mustPost(t, a, "b", "first")
		expectMail(t, b, "first")
		nc := s.Connect()
		put := func(subject, id, data string, header ...string) {
			m := nats.NewMsg("fab.c.production.d." + subject)
			m.Data = []byte(data)
			if id != "" {
				m.Header.Set("Nats-Msg-Id", id)
			}
			for i := 0; i < len(header); i += 2 {
				m.Header[header[i]] = []string{header[i+1]}
			}
			if ack, err := nc.RequestMsg(m, time.Second); err != nil || strings.Contains(string(ack.Data), `"error"`) {
				t.Fatalf("put %s: %s, %v", subject, ack.Data, err)
			}
		}
		id := ".dNNNNNN.1-SSSSSSSSSS"
		foreign := []func(){
			func() { put("b.a", "", "no id") },
			func() { put("b.a", "c"+id, "another's id") },
			func() { put("b.a", "a.sNNNNNN.1", "another kind") },
			func() { put("b.a", "a"+id+"x", "a long id") },
			func() { put("b.a", "rubbish", "rubbish", "Nats-Stream", "s", "K", "v") },
			func() { put("b.we!rd", "we!rd"+id, "no PID") },
			func() { put("b.a", "a.dNNNNNN.2-SSSSSSSSSS", "from a stream", "Nats-Sequence", "7") },
			func() { put("b.ext", "", "a status", "Status", "503") },
		}
		for _, f := range foreign {
			f()
		}
		put("b.ext", "", "plain")
		put("b.ext", "x", "plain with an id", "Key", "v")
		for i, want := range []string{"plain", "plain with an id"} {
			m := next(t, b)
			if m.From != fabric.External || string(m.Data) != want || m.ID != 0 || len(m.Header) != i || m.IsRequest() {
				t.Errorf("received %+v", m)
			}
			done(t, m, nil)
		}
		dead := awaitLetters(t, b, len(foreign))
		if len(dead) != len(foreign) {
			t.Errorf("%d dead letters, want %d", len(dead), len(foreign))
		}
		for _, d := range dead {
			if d.Reason == "" || len(d.Message.Data) == 0 || !strings.HasPrefix(d.Subject, "fab.c.production.d.b.") || d.Message.To != "b" {
				t.Errorf("dead letter %+v of %+v", d, d.Message)
			}
		}
		if d := dead[5]; d.Message.From != "_" || d.Subject != "fab.c.production.d.b.we!rd" {
			t.Errorf("dead letter %+v of %+v", d, d.Message)
		}
		synctest.Wait() // they are counted after they are stored
		if st := b.Stats(); st.Invalid != uint64(len(foreign)) || st.Parked != st.Invalid {
			t.Errorf("%+v", st)
		}
		mustPost(t, a, "b", "last")
		expectMail(t, b, "last")
	})
}

// Nobody can have a message of another taken for a repetition: ids cannot be foreseen.
// This shows the attack, with an id that is known.
func TestStolenID(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		nc := s.Connect()
		sub, err := nc.SubscribeSync("fab.c.production.d.>")
		if err != nil {
			t.Fatal(err)
		}
		seen := make(map[string]bool)
		for i := range 50 {
			mustPost(t, a, "b", fmt.Sprint(i))
			m, err := sub.NextMsg(time.Second)
			if err != nil {
				t.Fatal(err)
			}
			id := m.Header.Get("Nats-Msg-Id")
			head, mac, ok := strings.Cut(id, "-")
			if !ok || len(mac) != 10 || seen[mac] || !strings.HasPrefix(head, "a.d") {
				t.Fatalf("id %q: want a part at its end that never returns", id)
			}
			seen[mac] = true
		}
		// With a known id: JetStream says that the message is there, and it is not.
		for _, data := range []string{"thief", "victim"} {
			m := nats.NewMsg("fab.c.production.d.x." + data)
			m.Header.Set("Nats-Msg-Id", "known")
			ack, err := nc.RequestMsg(m, time.Second)
			if err != nil || strings.Contains(string(ack.Data), "duplicate") != (data == "victim") {
				t.Errorf("%s: %s, %v", data, ack.Data, err)
			}
		}
	})
}

// The mailbox's order holds also for what comes again, if one message is in flight.
func TestMailInStrictOrder(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		b := join(t, s, "b", mailbox, func(c *fabric.Config) { c.Mailbox.InFlight = 1 })
		mustPost(t, a, "b", "1", "2", "3")
		for range 2 {
			m := next(t, b)
			if string(m.Data) != "1" {
				t.Fatalf("received %q before 1 was done", m.Data)
			}
			done(t, m, errors.New("again"))
		}
		expectMail(t, b, "1", "2", "3")
	})
}

// Mail waits for room in the inbox, and nothing is refused.
func TestMailAndASmallInbox(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		b := join(t, s, "b", mailbox, func(c *fabric.Config) { c.Inbox = fabric.Inbox{Messages: 2, Bytes: 10} })
		var want []string
		for i := range 40 {
			want = append(want, fmt.Sprintf("message %02d, longer than the inbox", i))
		}
		mustPost(t, a, "b", want...)
		time.Sleep(3 * ttl)
		expectMail(t, b, want...)
		quiet(t, b, 3*ttl)
		if st := b.Stats(); st.Rejected != 0 || st.Received != 40 {
			t.Errorf("%+v", st)
		}
	})
}

// The streams are checked, and never changed.
func TestMailStreams(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		js, err := jetstream.New(s.Connect())
		if err != nil {
			t.Fatal(err)
		}
		config := func() jetstream.StreamConfig {
			return jetstream.StreamConfig{
				Name: "fab_c_production_mail", Subjects: []string{"fab.c.production.d.*.*"}, Retention: jetstream.WorkQueuePolicy,
				MaxMsgsPerSubject: 7, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
			}
		}
		a := join(t, s, "a")
		for field, spoil := range map[string]func(*jetstream.StreamConfig){
			"retention":               func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
			"storage":                 func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
			"subjects":                func(c *jetstream.StreamConfig) { c.Subjects = []string{"fab.c.production.d.>"} },
			"discard":                 func(c *jetstream.StreamConfig) { c.Discard, c.DiscardNewPerSubject = jetstream.DiscardOld, false },
			"discard_new_per_subject": func(c *jetstream.StreamConfig) { c.DiscardNewPerSubject = false },
			"max_msgs_per_subject":    func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject, c.DiscardNewPerSubject = 0, false },
			"duplicate_window":        func(c *jetstream.StreamConfig) { c.Duplicates = time.Second },
			"allow_rollup_hdrs":       func(c *jetstream.StreamConfig) { c.AllowRollup = true },
			"no_ack":                  func(c *jetstream.StreamConfig) { c.NoAck = true },
			"republish":               func(c *jetstream.StreamConfig) { c.RePublish = &jetstream.RePublish{Destination: "x.>"} },
		} {
			c := config()
			spoil(&c)
			if _, err := js.CreateStream(t.Context(), c); err != nil {
				t.Fatalf("%s: %v", field, err)
			}
			err := post(t.Context(), a, "b", "x")
			e, ok := errors.AsType[*fabric.StreamError](err)
			if field == "max_msgs_per_subject" {
				field = "discard_new_per_subject" // the server allows the one with the other only
			}
			if !ok || !errors.Is(err, fabric.ErrStream) || e.Field != field || e.Stream != c.Name || e.Want == nil || e.Got == nil {
				t.Errorf("%s: %v", field, err)
			}
			_, err = fabric.Join(within(t, time.Minute), fabric.Config{
				Cluster: "c", PID: "b", NATS: options(s.Link()), Mailbox: fabric.Mailbox{On: true},
			})
			if !errors.Is(err, fabric.ErrStream) {
				t.Errorf("Join, %s: %v", field, err)
			}
			if err := js.DeleteStream(t.Context(), c.Name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := js.CreateStream(t.Context(), config()); err != nil {
			t.Fatal(err)
		}
		mustPost(t, a, "b", "1")
		expectMail(t, join(t, s, "b", mailbox), "1")
		st, err := js.Stream(t.Context(), "fab_c_production_mail")
		if err != nil {
			t.Fatal(err)
		}
		if got := st.CachedInfo().Config; got.MaxMsgsPerSubject != 7 || got.Description != "" || got.MaxAge != 0 {
			t.Errorf("the stream was changed: %+v", got)
		}
	})
}

// A stream that is lost is made again; a passive node makes none.
func TestMailStreamLost(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		js, err := jetstream.New(s.Connect())
		if err != nil {
			t.Fatal(err)
		}
		b := join(t, s, "b")
		passive := join(t, s, "p", func(c *fabric.Config) { c.Passive = true })
		if err := post(t.Context(), passive, "b", "x"); !errors.Is(err, fabric.ErrNoMail) {
			t.Errorf("post from a passive node without a stream: %v", err)
		}
		if _, err := js.Stream(t.Context(), "fab_c_production_mail"); !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("a stream was made: %v", err)
		}
		leave(t, b)
		b = join(t, s, "b", mailbox)
		mustPost(t, passive, "b", "1")
		expectMail(t, b, "1")
		if err := js.DeleteStream(t.Context(), "fab_c_production_mail"); err != nil {
			t.Fatal(err)
		}
		a := join(t, s, "a")
		mustPost(t, a, "b", "2")
		mustPost(t, passive, "b", "3")
		expectMail(t, b, "2", "3")
		if err := js.DeleteConsumer(t.Context(), "fab_c_production_mail", "mb-b"); err != nil {
			t.Fatal(err)
		}
		mustPost(t, a, "b", "4")
		expectMail(t, b, "4")
	})
}

func TestMailboxConfig(t *testing.T) {
	on := fabric.Mailbox{On: true}
	for name, c := range map[string]fabric.Config{
		"no PID":    {Mailbox: on},
		"passive":   {PID: "a", Passive: true, Mailbox: on},
		"observer":  {PID: "a", Role: fabric.RoleObserver, Mailbox: on},
		"inbox off": {PID: "a", Inbox: fabric.Inbox{Off: true}, Mailbox: on},
		"negative":  {PID: "a", Mailbox: fabric.Mailbox{Attempts: -1}},
		"age":       {PID: "a", Mailbox: fabric.Mailbox{Age: time.Second}},
	} {
		c.Cluster = "c"
		_, err := fabric.Join(t.Context(), c)
		if e, ok := errors.AsType[*fabric.ConfigError](err); !ok || e.Field != "Mailbox" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The shortest Age that Config allows is one that the server takes.
func TestShortMailAge(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		short := func(c *fabric.Config) { c.Mailbox.Age = time.Minute }
		a, b := join(t, s, "a"), join(t, s, "b", mailbox, short)
		mustPost(t, a, "b", "1")
		expectMail(t, b, "1")
		mustPost(t, a, "c", "old")
		time.Sleep(2 * time.Minute)
		mustPost(t, a, "c", "new")
		expectMail(t, join(t, s, "c", mailbox, short), "new")
	})
}

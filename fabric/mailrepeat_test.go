package fabric_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// muteMail has the mail stream store what comes and answer nothing.
func muteMail(t *testing.T, s *natstest.Server, mute bool) {
	t.Helper()
	js, err := jetstream.New(s.Connect())
	if err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(t.Context(), "fab_c_production_mail")
	if err != nil {
		t.Fatal(err)
	}
	cfg := st.CachedInfo().Config
	cfg.NoAck, cfg.Duplicates = mute, time.Minute
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

// A broadcast whose messages are not acknowledged takes no longer than one message, and
// repeats all of them together.
func TestMailBroadcastWithoutAnswers(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		mustPost(t, a, "a", "makes the stream")
		const count = 20
		var pids []fabric.PID
		for i := range count {
			pids = append(pids, fabric.PID(fmt.Sprintf("r%d", i)))
		}
		if err := fabric.CreateMailboxes(t.Context(), fabric.Config{Cluster: "c", NATS: options(s.Link())}, pids...); err != nil {
			t.Fatal(err)
		}
		muteMail(t, s, true)
		began := time.Now()
		err := a.SendMsg(t.Context(), &fabric.Message{To: fabric.Everyone, Mode: fabric.Durable})
		if took := time.Since(began); !errors.Is(err, fabric.ErrUnknownOutcome) || took > 2*fabric.DefaultRequestTimeout {
			t.Errorf("it took %v: %v", took, err)
		}

		ended := make(chan error)
		go func() {
			ended <- a.SendMsg(t.Context(), &fabric.Message{To: fabric.Everyone, Mode: fabric.Durable})
		}()
		time.Sleep(500 * time.Millisecond)
		muteMail(t, s, false)
		if err := <-ended; err != nil {
			t.Errorf("repeated: %v", err)
		}
	})
}

// A message that may be stored is not repeated once the server has forgotten its id,
// whatever it answered to the other attempts.
func TestMailNotRepeatedTooLate(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		mustPost(t, a, "a", "makes the stream")
		muteMail(t, s, true)
		nc := s.Connect()
		first := true
		_, err := nc.Subscribe("fab.c.production.d.b.a", func(m *nats.Msg) {
			if !first { // the first is stored; then the server says that it has no leader
				_ = m.Respond([]byte(`{"error":{"code":503,"err_code":10008,"description":"busy"}}`))
			}
			first = false
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err = post(within(t, 2*time.Minute), a, "b", "once")
		if took := time.Since(began); !errors.Is(err, fabric.ErrUnknownOutcome) || took > time.Minute {
			t.Errorf("it took %v: %v", took, err)
		}
		if n := waiting(t, a, "b"); n != 1 {
			t.Errorf("it is stored %d times", n)
		}
	})
}

// The address at which one message was acknowledged is used for the next. What comes there
// about the one before is not taken for an answer to it.
func TestMailLateAnswers(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		mustPost(t, a, "b", "makes the stream")
		nc := s.Connect()
		tap, err := nc.SubscribeSync("fab.c.production.d.b.a")
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		published := func(data string) (at string) {
			t.Helper()
			m, err := tap.NextMsg(2 * time.Second)
			if err != nil || string(m.Data) != data {
				t.Fatalf("published %v, %v, want %q", m, err, data)
			}
			return m.Reply
		}
		mustPost(t, a, "b", "1", "2")
		at := published("1")
		if next := published("2"); next != at {
			t.Errorf("acknowledged at %s, then at %s", at, next)
		}

		for i, late := range []string{
			`{"stream":"fab_c_production_mail","seq":LAST}`,
			`{"stream":"fab_c_production_mail","seq":LAST,"duplicate":true}`,
			`{"stream":"another","seq":9223372036854775807}`,
			`{"error":{"code":503,"err_code":10077,"description":"maximum messages per subject exceeded"}}`,
		} {
			mustPost(t, a, "b", "before")
			at := published("before")
			late = strings.Replace(late, "LAST", fmt.Sprint(lastMail(t, s)), 1)
			muteMail(t, s, true)
			ended := make(chan error, 1)
			go func() { ended <- post(within(t, time.Minute), a, "b", late) }()
			if got := published(late); got != at {
				t.Fatalf("%d: acknowledged at %s, then at %s", i, at, got)
			}
			began := time.Now()
			if err := nc.Publish(at, []byte(late)); err != nil {
				t.Fatal(err)
			}
			if got := published(late); got == at {
				t.Errorf("%d: the repetition is acknowledged at the same address", i)
			}
			refusal := strings.Contains(late, "error")
			if took := time.Since(began); refusal != (took < 500*time.Millisecond) {
				t.Errorf("%s: repeated after %v", late, took)
			}
			select {
			case err := <-ended:
				t.Errorf("%s: taken for an answer to the next: %v", late, err)
				continue
			default:
			}
			muteMail(t, s, false)
			if err := <-ended; err != nil {
				t.Errorf("%s: %v", late, err)
			}
			for _, err := tap.NextMsg(3 * time.Second); err == nil; _, err = tap.NextMsg(3 * time.Second) {
			}
		}
	})
}

// lastMail is the place in the mail stream of the newest message.
func lastMail(t *testing.T, s *natstest.Server) uint64 {
	t.Helper()
	js, err := jetstream.New(s.Connect())
	if err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(t.Context(), "fab_c_production_mail")
	if err != nil {
		t.Fatal(err)
	}
	return st.CachedInfo().State.LastSeq
}

// A stream that begins its numbers anew, as one from a backup does, has messages
// acknowledged like any other.
func TestMailStreamBeginsAnew(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		mustPost(t, a, "b", "1")
		js, err := jetstream.New(s.Connect())
		if err != nil {
			t.Fatal(err)
		}
		st, err := js.Stream(t.Context(), "fab_c_production_mail")
		if err != nil {
			t.Fatal(err)
		}
		cfg := st.CachedInfo().Config
		if err := js.DeleteStream(t.Context(), cfg.Name); err != nil {
			t.Fatal(err)
		}
		cfg.FirstSeq = 1
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		mustPost(t, a, "b", "2", "3")
		if n := waiting(t, a, "b"); n != 2 {
			t.Errorf("%d messages are stored, want 2", n)
		}
	})
}

package fabric_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// mailStream returns how the mail stream is set up.
func mailStream(t *testing.T, s *natstest.Server) (jetstream.JetStream, jetstream.StreamConfig) {
	t.Helper()
	js, err := jetstream.New(s.Connect())
	if err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(t.Context(), "fab_c_production_mail")
	if err != nil {
		t.Fatal(err)
	}
	return js, st.CachedInfo().Config
}

// muteMail has the mail stream store what comes and answer nothing.
func muteMail(t *testing.T, s *natstest.Server, mute bool) {
	t.Helper()
	js, cfg := mailStream(t, s)
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

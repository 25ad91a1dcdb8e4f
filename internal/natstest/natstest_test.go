package natstest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// newStream makes a stream over subject s.> in a server's JetStream.
func newStream(t *testing.T, nc *nats.Conn, replicas int) (jetstream.JetStream, jetstream.Stream) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	st, err := js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "S", Subjects: []string{"s.>"}, Storage: jetstream.FileStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, AllowMsgTTL: true, AllowDirect: true,
		SubjectDeleteMarkerTTL: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return js, st
}

func messages(t *testing.T, st jetstream.Stream) uint64 {
	t.Helper()
	info, err := st.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.State.Msgs
}

func TestBubbleTTL(t *testing.T) {
	began := time.Now()
	Bubble(t, func(t *testing.T, s *Server) {
		nc := s.Connect()
		js, _ := newStream(t, nc, 1)
		sub, err := js.OrderedConsumer(t.Context(), "S", jetstream.OrderedConsumerConfig{})
		if err != nil {
			t.Fatal(err)
		}
		msgs, err := sub.Messages()
		if err != nil {
			t.Fatal(err)
		}
		defer msgs.Stop()

		start := time.Now()
		msg := &nats.Msg{Subject: "s.a", Data: []byte("x"), Header: nats.Header{"Nats-TTL": {"60s"}}}
		if _, err := js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		for {
			m, err := msgs.Next()
			if err != nil {
				t.Fatal(err)
			}
			if reason := m.Headers().Get("Nats-Marker-Reason"); reason != "" {
				if reason != "MaxAge" {
					t.Errorf("marker reason = %q, want MaxAge", reason)
				}
				break
			}
		}
		if got := time.Since(start); got < 60*time.Second || got > 61*time.Second {
			t.Errorf("expired after %v, want 60s", got)
		}
	})
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("a minute in a bubble took %v", took)
	}
}

func TestBubbleConnectionsOfItsOwn(t *testing.T) {
	Bubble(t, func(t *testing.T, s *Server) {
		if got := s.URL(); got != "" {
			t.Errorf("URL() = %q in a bubble, want none", got)
		}
		nc, err := nats.Connect("", nats.InProcessServer(s.Provider()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // runs with the server still up
			if err := nc.Flush(); err != nil {
				t.Error(err)
			}
			nc.Close()
		})
	})
}

// TestBubbleLeak looks at a bubble that leaks, from the outside, because the
// failure takes the test process with it.
func TestBubbleLeak(t *testing.T) {
	const key = "NATSTEST_LEAK"
	if os.Getenv(key) != "" {
		Bubble(t, func(t *testing.T, s *Server) {
			go func() { <-make(chan int) }()
		})
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBubbleLeak$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), key+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("a leaked goroutine passed:\n%s", out)
	}
	if !strings.Contains(string(out), "main bubble goroutine has exited but blocked goroutines remain") {
		t.Errorf("a leaked goroutine failed with:\n%s", out)
	}
}

// TestBubbleManyTimes would die of a timer pool shared between bubbles.
func TestBubbleManyTimes(t *testing.T) {
	for range 5 {
		Bubble(t, func(t *testing.T, s *Server) {
			js, _ := newStream(t, s.Connect(), 1)
			for range 20 {
				if _, err := js.Publish(t.Context(), "s.a", nil); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	s := Start(t)
	js, _ := newStream(t, s.Connect(), 1)
	if _, err := js.Publish(t.Context(), "s.a", nil); err != nil {
		t.Fatal(err)
	}
}

func TestBubbleRestart(t *testing.T) {
	Bubble(t, func(t *testing.T, s *Server) {
		nc := s.Connect(FastOptions()...)
		js, st := newStream(t, nc, 1)
		if _, err := js.Publish(t.Context(), "s.a", []byte("kept")); err != nil {
			t.Fatal(err)
		}
		s.Stop()
		synctest.Wait()
		if got := nc.Status(); got != nats.RECONNECTING {
			t.Errorf("status with the server down = %v, want %v", got, nats.RECONNECTING)
		}
		if _, err := nats.Connect("", nats.InProcessServer(s.Provider())); !errors.Is(err, errDown) {
			t.Errorf("connect with the server down: %v, want %v", err, errDown)
		}
		s.Start()
		waitStatus(t, nc, nats.CONNECTED)
		m, err := st.GetLastMsgForSubject(t.Context(), "s.a")
		if err != nil {
			t.Fatal(err)
		}
		if got := string(m.Data); got != "kept" {
			t.Errorf("after a restart the stream holds %q, want %q", got, "kept")
		}
		s.Restart()
		synctest.Wait() // the client has noticed
		waitStatus(t, nc, nats.CONNECTED)
		if got := messages(t, st); got != 1 {
			t.Errorf("after two restarts the stream holds %d messages, want 1", got)
		}
		if got := strings.Count(s.Logs(), "Server is ready"); got != 3 {
			t.Errorf("the log tells of %d starts, want 3:\n%s", got, s.Logs())
		}
	})
}

// waitStatus waits up to a minute for a status of a connection.
func waitStatus(t *testing.T, nc *nats.Conn, want nats.Status) time.Duration {
	t.Helper()
	start := time.Now()
	ch := nc.StatusChanged(want)
	defer nc.RemoveStatusListener(ch)
	timer := time.NewTimer(time.Minute)
	defer timer.Stop()
	for nc.Status() != want {
		select {
		case <-ch:
		case <-timer.C:
			t.Fatalf("status = %v after a minute, want %v", nc.Status(), want)
		}
	}
	return time.Since(start)
}

func TestLinkCut(t *testing.T) {
	Bubble(t, func(t *testing.T, s *Server) {
		link := s.Link()
		nc := s.Connect(append(FastOptions(), nats.InProcessServer(link))...)
		peer := s.Connect()
		sub, err := peer.SubscribeSync("x")
		if err != nil {
			t.Fatal(err)
		}
		if err := peer.Flush(); err != nil {
			t.Fatal(err)
		}

		link.Cut()
		if err := nc.Publish("x", nil); err != nil {
			t.Fatal(err)
		}
		if err := nc.FlushTimeout(500 * time.Millisecond); !errors.Is(err, nats.ErrTimeout) {
			t.Errorf("flush through a cut link: %v, want %v", err, nats.ErrTimeout)
		}
		if m, err := sub.NextMsg(100 * time.Millisecond); err == nil {
			t.Errorf("message %q went through a cut link", m.Subject)
		}
		if _, err := nats.Connect("", nats.InProcessServer(link)); !errors.Is(err, errCut) {
			t.Errorf("connect through a cut link: %v, want %v", err, errCut)
		}
		if took := waitStatus(t, nc, nats.RECONNECTING); took > 4*time.Second {
			t.Errorf("noticed the cut after %v, want about 3s", took)
		}

		link.Heal()
		if took := waitStatus(t, nc, nats.CONNECTED); took > time.Second {
			t.Errorf("reconnected %v after the heal, want about 100ms", took)
		}
		if _, err := sub.NextMsg(time.Second); err != nil {
			t.Errorf("what the cut held back: %v, want it delivered", err)
		}
		if err := nc.Flush(); err != nil {
			t.Error(err)
		}
	})
}

// TestLinkShortCut heals before a ping finds out: the connection lives on.
func TestLinkShortCut(t *testing.T) {
	Bubble(t, func(t *testing.T, s *Server) {
		link := s.Link()
		nc := s.Connect(append(FastOptions(), nats.InProcessServer(link))...)
		link.Cut()
		time.AfterFunc(1500*time.Millisecond, link.Heal)
		start := time.Now()
		if err := nc.FlushTimeout(5 * time.Second); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != 1500*time.Millisecond {
			t.Errorf("flush took %v, want as long as the cut", got)
		}
		if got := nc.Stats().Reconnects; got != 0 {
			t.Errorf("%d reconnects, want none", got)
		}
	})
}

func TestLinkCutReplies(t *testing.T) {
	Bubble(t, func(t *testing.T, s *Server) {
		link := s.Link()
		nc := s.Connect(append(FastOptions(), nats.InProcessServer(link))...)
		js, _ := newStream(t, nc, 1)
		link.CutReplies()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := js.Publish(ctx, "s.a", []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("publish without replies: %v, want %v", err, context.DeadlineExceeded)
		}
		other, err := jetstream.New(s.Connect())
		if err != nil {
			t.Fatal(err)
		}
		st, err := other.Stream(t.Context(), "S")
		if err != nil {
			t.Fatal(err)
		}
		if got := messages(t, st); got != 1 {
			t.Errorf("stream holds %d messages, want the one whose ack was lost", got)
		}
		waitStatus(t, nc, nats.RECONNECTING)
		link.Heal()
		waitStatus(t, nc, nats.CONNECTED)
	})
}

func TestLinkKill(t *testing.T) {
	Bubble(t, func(t *testing.T, s *Server) {
		link := s.Link()
		nc := s.Connect(append(FastOptions(), nats.InProcessServer(link))...)
		js, st := newStream(t, nc, 1)

		// A write held back by a cut is lost with the connection.
		link.Cut()
		if err := nc.Publish("s.a", nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		link.Kill()
		synctest.Wait()
		if got := nc.Status(); got != nats.RECONNECTING {
			t.Errorf("status after a kill = %v, want %v", got, nats.RECONNECTING)
		}
		link.Heal()
		waitStatus(t, nc, nats.CONNECTED)
		if got := messages(t, st); got != 0 {
			t.Errorf("stream holds %d messages, want none", got)
		}

		// Without a cut the client is back at once.
		link.Kill()
		synctest.Wait()
		waitStatus(t, nc, nats.CONNECTED)
		if _, err := js.Publish(t.Context(), "s.a", nil); err != nil {
			t.Error(err)
		}
	})
}

// TestLinkCutInHandshake cuts at the very moment clients connect: none may be left
// waiting for a greeting with its lock held, or time would stop.
func TestLinkCutInHandshake(t *testing.T) {
	Bubble(t, func(t *testing.T, s *Server) {
		link := s.Link()
		var conns []*nats.Conn
		for range 10 {
			conns = append(conns, s.Connect(append(FastOptions(), nats.InProcessServer(link))...))
		}
		for range 20 {
			link.Kill()
			time.Sleep(100 * time.Millisecond) // the reconnect wait
			link.Cut()
			for _, nc := range conns {
				nc.IsConnected() // takes the client's lock
			}
			time.Sleep(300 * time.Millisecond)
			link.Heal()
			for _, nc := range conns {
				waitStatus(t, nc, nats.CONNECTED)
			}
		}
	})
}

func TestStart(t *testing.T) {
	s := Start(t)
	nc := s.Connect(FastOptions()...)
	js, st := newStream(t, nc, 1)
	if _, err := js.Publish(t.Context(), "s.a", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	url := s.URL()
	s.Stop()
	waitStatus(t, nc, nats.RECONNECTING)
	s.Start()
	if got := s.URL(); got != url {
		t.Errorf("URL() after a restart = %q, want %q", got, url)
	}
	other, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
	waitStatus(t, nc, nats.CONNECTED)
	if got := messages(t, st); got != 1 {
		t.Errorf("after a restart the stream holds %d messages, want 1", got)
	}

	// A link works in real time too.
	link := s.Link()
	cut := s.Connect(append(FastOptions(), nats.InProcessServer(link))...)
	link.Cut()
	link.Kill()
	waitStatus(t, cut, nats.RECONNECTING)
	link.Heal()
	waitStatus(t, cut, nats.CONNECTED)
}

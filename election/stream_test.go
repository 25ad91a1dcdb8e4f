package election_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

const fenceSubject = "orders.fence"

// orders makes a stream and returns a way to it over a connection of its own.
func orders(t *testing.T, nc *nats.Conn, tune ...func(*jetstream.StreamConfig)) (jetstream.JetStream, jetstream.Stream) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	cfg := jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}
	for _, f := range tune {
		f(&cfg)
	}
	s, err := js.CreateOrUpdateStream(within(t, 30*time.Second), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return js, s
}

func fence(t *testing.T, js jetstream.JetStream, term *election.Term) *election.StreamPublisher {
	t.Helper()
	p, err := election.FenceStream(within(t, 20*time.Second), js, term, "ORDERS", fenceSubject)
	if err != nil {
		t.Fatalf("FenceStream: %v", err)
	}
	return p
}

func publish(t *testing.T, p *election.StreamPublisher, data string) {
	t.Helper()
	if _, err := p.Publish(within(t, 20*time.Second), "orders.new", []byte(data)); err != nil {
		t.Errorf("Publish %s: %v", data, err)
	}
}

func count(t *testing.T, s jetstream.Stream, subject string) int {
	t.Helper()
	info, err := s.Info(within(t, 10*time.Second), jetstream.WithSubjectFilter(subject))
	if err != nil {
		t.Fatal(err)
	}
	return int(info.State.Subjects[subject])
}

func TestFencedStreamRefusesADeposedLeader(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		js, stream := orders(t, s.Connect())
		a, la := joinLink(t, s, "a")
		ta := campaign(t, of(t, a, 0))
		pa := fence(t, js, ta)
		publish(t, pa, "1")
		la.Cut() // from the fabric; its stream it can reach
		tb := campaign(t, of(t, join(t, s, "b"), 0))
		pb := fence(t, js, tb)
		publish(t, pb, "2")
		for range 3 {
			if _, err := pa.Publish(within(t, time.Second), "orders.new", []byte("late")); !errors.Is(err, election.ErrFenced) || errors.Is(err, election.ErrUnknown) {
				t.Errorf("Publish of a deposed leader = %v, want ErrFenced", err)
			}
		}
		if _, err := election.FenceStream(within(t, time.Second), js, ta, "ORDERS", fenceSubject); !errors.Is(err, election.ErrFenced) {
			t.Errorf("FenceStream of a deposed leader = %v, want ErrFenced", err)
		}
		publish(t, pb, "3")
		// Of one term all publishers publish.
		pb2 := fence(t, js, tb)
		publish(t, pb2, "4")
		publish(t, pb, "5")
		resign(t, tb)
		if _, err := pb.Publish(within(t, time.Second), "orders.new", []byte("late")); !errors.Is(err, election.ErrFenced) {
			t.Errorf("Publish after Resign = %v, want ErrFenced", err)
		}
		if got := count(t, stream, "orders.new"); got != 5 {
			t.Errorf("%d messages are stored, want 5", got)
		}
	})
}

// The fence's record is gone: the leader stores another, one that was deposed does not
// get through even then.
func TestFenceThatWasRemoved(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		js, stream := orders(t, s.Connect())
		a, la := joinLink(t, s, "a")
		ta := campaign(t, of(t, a, 0))
		pa := fence(t, js, ta)
		la.Cut()
		tb := campaign(t, of(t, join(t, s, "b"), 0))
		pb := fence(t, js, tb)
		for i := range 3 {
			if err := stream.Purge(within(t, time.Second), jetstream.WithPurgeSubject(fenceSubject)); err != nil {
				t.Fatal(err)
			}
			if i == 1 {
				la.Heal()
			}
			for range 2 {
				if _, err := pa.Publish(within(t, 2*time.Second), "orders.new", []byte("late")); err == nil {
					t.Error("a deposed leader published where the fence was removed")
				}
			}
			publish(t, pb, fmt.Sprint(i))
		}
		if got := count(t, stream, "orders.new"); got != 3 {
			t.Errorf("%d messages are stored, want 3", got)
		}
		resign(t, tb)
	})
}

// An answer is lost: the message is stored once.
func TestPublishInDoubt(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		l := s.Link()
		js, stream := orders(t, s.Connect(options(l)...))
		term := campaign(t, of(t, join(t, s, "a"), 0))
		p := fence(t, js, term)
		l.CutReplies()
		time.AfterFunc(3*time.Second, l.Heal)
		publish(t, p, "1")
		if got := count(t, stream, "orders.new"); got != 1 {
			t.Errorf("%d messages are stored, want 1", got)
		}
		l.CutReplies()
		if _, err := p.Publish(within(t, time.Second), "orders.new", []byte("2")); !errors.Is(err, election.ErrUnknown) {
			t.Errorf("Publish without an answer = %v, want ErrUnknown", err)
		}
		l.Heal()
		// Without a window in which the stream knows a message again, none is repeated.
		js, stream = orders(t, s.Connect(options(l)...), func(c *jetstream.StreamConfig) { c.Duplicates = time.Second })
		p = fence(t, js, term)
		l.CutReplies()
		time.AfterFunc(3*time.Second, l.Heal)
		if _, err := p.Publish(within(t, time.Minute), "orders.new", []byte("3")); !errors.Is(err, election.ErrUnknown) {
			t.Errorf("Publish without an answer and a window = %v, want ErrUnknown", err)
		}
		time.Sleep(5 * time.Second)
		if got := count(t, stream, "orders.new"); got != 3 {
			t.Errorf("%d messages are stored, want 3", got)
		}
		resign(t, term)
	})
}

func TestFenceStreamIsChecked(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc := s.Connect()
		js, _ := orders(t, nc)
		n := join(t, s, "a")
		term := campaign(t, of(t, n, 0))
		for _, subject := range []string{"", "orders.*", "orders.>", "orders fence"} {
			if _, err := election.FenceStream(t.Context(), js, term, "ORDERS", subject); !errors.Is(err, election.ErrConfig) {
				t.Errorf("FenceStream under %q = %v, want ErrConfig", subject, err)
			}
		}
		if _, err := election.FenceStream(within(t, time.Second), js, term, "NONE", fenceSubject); !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("FenceStream of no stream = %v", err)
		}
		queue, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "QUEUE", Subjects: []string{"queue.>"}, Retention: jetstream.WorkQueuePolicy})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := election.FenceStream(t.Context(), js, term, queue.CachedInfo().Config.Name, "queue.fence"); !errors.Is(err, election.ErrConfig) {
			t.Errorf("FenceStream of a work queue = %v, want ErrConfig", err)
		}
		if _, err := election.FenceStream(within(t, 5*time.Second), js, term, "ORDERS", "elsewhere"); err == nil {
			t.Error("FenceStream under a subject that is not the stream's: no error")
		}
		p := fence(t, js, term)
		if _, err := p.Publish(t.Context(), fenceSubject, nil); !errors.Is(err, election.ErrConfig) {
			t.Errorf("Publish under the fence = %v, want ErrConfig", err)
		}
		other, err := election.New(n, election.Config{Name: "y"})
		if err != nil {
			t.Fatal(err)
		}
		ty := campaign(t, other)
		if _, err := election.FenceStream(within(t, time.Second), js, ty, "ORDERS", fenceSubject); !errors.Is(err, election.ErrForeign) {
			t.Errorf("FenceStream over another election's fence = %v, want ErrForeign", err)
		}
		resign(t, ty)
		resign(t, term)
	})
}

// hammer publishes n messages from several goroutines.
func hammer(t *testing.T, p *election.StreamPublisher, n int) {
	t.Helper()
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			for range n / cap(errs) {
				if _, err := p.Publish(within(t, 30*time.Second), "orders.new", []byte("x")); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Errorf("Publish: %v", err)
		}
	}
}

func TestFencedPublishersArePipelined(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		js, stream := orders(t, s.Connect())
		term := campaign(t, of(t, join(t, s, "a"), 0))
		hammer(t, fence(t, js, term), 400)
		if got := count(t, stream, "orders.new"); got != 400 {
			t.Errorf("%d messages are stored, want 400", got)
		}
		resign(t, term)
	})
}

// watched is a context without a deadline that ends when nothing else would end.
func watched(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	watchdog := time.AfterFunc(20*time.Second, cancel)
	t.Cleanup(func() { watchdog.Stop(); cancel() })
	return ctx
}

// What can never be stored is refused at once, also without a deadline.
func TestFencedStreamHasSubjects(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		js, stream := orders(t, s.Connect(), func(c *jetstream.StreamConfig) { c.Subjects = []string{"orders.>", "log.*.x"} })
		term := campaign(t, of(t, join(t, s, "a"), 0))
		refused := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, election.ErrConfig) || errors.Is(err, election.ErrUnknown) {
				t.Errorf("%s = %v, want ErrConfig alone", what, err)
			}
		}
		for _, subject := range []string{"elsewhere", "orders", "log.x", "log.a.b", "log.a.x.y"} {
			_, err := election.FenceStream(watched(t), js, term, "ORDERS", subject)
			refused("FenceStream under "+subject, err)
		}
		p := fence(t, js, term)
		for _, subject := range []string{"elsewhere", "orders", "log.a.b", "orders.>", "orders..x", "orders.x ", ""} {
			began := time.Now()
			_, err := p.Publish(watched(t), subject, nil)
			refused("Publish to "+subject, err)
			if took := time.Since(began); took > time.Second {
				t.Errorf("Publish to %q failed after %v, want at once", subject, took)
			}
		}
		for _, header := range []string{"Nats-Expected-Last-Sequence", "Nats-Expected-Last-Subject-Sequence", "Nats-Expected-Stream", "Nats-Rollup"} {
			m := nats.NewMsg("orders.new")
			m.Header.Set(header, "77")
			_, err := p.PublishMsg(watched(t), m)
			refused("PublishMsg with "+header, err)
		}
		if got := count(t, stream, "orders.new"); got != 0 {
			t.Errorf("%d messages are stored, want none", got)
		}
		if _, err := p.Publish(watched(t), "log.a.x", nil); err != nil {
			t.Errorf("Publish to log.a.x = %v", err)
		}
		resign(t, term)
	})
}

// The stream's subjects change under its publisher. What nobody received is not in
// doubt.
func TestFencedStreamChangesItsSubjects(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		js, _ := orders(t, s.Connect())
		term := campaign(t, of(t, join(t, s, "a"), 0))
		p := fence(t, js, term)
		orders(t, s.Connect(), func(c *jetstream.StreamConfig) { c.Subjects = []string{fenceSubject, "orders.old", "bills"} })
		if _, err := p.Publish(watched(t), "bills", nil); err != nil {
			t.Errorf("Publish to a subject that the stream has got since = %v", err)
		}
		orders(t, s.Connect(), func(c *jetstream.StreamConfig) { c.Subjects = []string{fenceSubject} })
		if _, err := p.Publish(within(t, 100*time.Millisecond), "bills", nil); !errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, election.ErrUnknown) {
			t.Errorf("Publish that nobody received = %v, want ErrNoStreamResponse without ErrUnknown", err)
		}
		if _, err := p.Publish(watched(t), "bills", nil); !errors.Is(err, election.ErrConfig) || errors.Is(err, election.ErrUnknown) {
			t.Errorf("Publish to a subject that the stream has lost = %v, want ErrConfig", err)
		}
		if err := js.DeleteStream(within(t, time.Second), "ORDERS"); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Publish(watched(t), fenceSubject+".x", nil); !errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, election.ErrUnknown) {
			t.Errorf("Publish to a stream that was deleted = %v, want ErrStreamNotFound", err)
		}
		resign(t, term)
	})
}

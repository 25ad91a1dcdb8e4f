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

// A tap is a way to JetStream on which answers to messages can be lost, or replaced.
type tap struct {
	jetstream.JetStream
	subject string
	n       int
	// on is what becomes of the nth message under subject: what send returns is the
	// server's answer.
	on func(n int, send func() (*jetstream.PubAck, error)) (*jetstream.PubAck, error)
}

func (a *tap) PublishMsg(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	send := func() (*jetstream.PubAck, error) { return a.JetStream.PublishMsg(ctx, m, opts...) }
	if m.Subject != a.subject {
		return send()
	}
	a.n++
	return a.on(a.n-1, send)
}

// soon fails the test if more than a second has passed.
func soon(t *testing.T, what string, began time.Time) {
	t.Helper()
	if took := time.Since(began); took > time.Second {
		t.Errorf("%s took %v, want at once", what, took)
	}
}

// What nats.go refuses was not sent: it is not in doubt, and what it will always refuse
// fails at once.
func TestPublishThatIsNotSent(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc := s.Connect()
		js, _ := orders(t, nc)
		term := campaign(t, of(t, join(t, s, "a"), 0))
		p := fence(t, js, term)
		definite := func(what string, err, want error) {
			t.Helper()
			if !errors.Is(err, want) || errors.Is(err, election.ErrUnknown) {
				t.Errorf("Publish %s = %v, want %v without ErrUnknown", what, err, want)
			}
		}
		began := time.Now()
		_, err := p.Publish(watched(t), "orders.new", make([]byte, nc.MaxPayload()+1))
		definite("of too much", err, nats.ErrMaxPayload)
		m := nats.NewMsg("orders.new")
		m.Header["bad key"] = []string{"x"}
		_, err = p.PublishMsg(watched(t), m)
		definite("with a header that is none", err, nats.ErrBadHeaderMsg)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = p.Publish(ended, "orders.new", nil)
		definite("with a context that has ended", err, context.Canceled)

		// The same after an attempt whose answer was lost.
		lost := &tap{JetStream: js, subject: "orders.new"}
		q := fence(t, lost, term)
		for _, want := range []error{nats.ErrMaxPayload, nats.ErrConnectionDraining, nats.ErrHeadersNotSupported} {
			for attempts := range 2 {
				lost.n, lost.on = 0, func(n int, send func() (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
					if n == attempts {
						return nil, want
					}
					if _, err := send(); err != nil {
						t.Error(err)
					}
					return nil, nats.ErrTimeout
				}
				_, err = q.Publish(watched(t), "orders.new", nil)
				if !errors.Is(err, want) || errors.Is(err, election.ErrUnknown) != (attempts > 0) || lost.n != attempts+1 {
					t.Errorf("Publish after %d attempts in doubt, and %d in all = %v, want %v", attempts, lost.n, err, want)
				}
			}
		}
		// A full buffer may be empty soon.
		lost.n, lost.on = 0, func(n int, send func() (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
			if n < 4 {
				return nil, nats.ErrReconnectBufExceeded
			}
			return send()
		}
		_, err = q.Publish(within(t, 50*time.Millisecond), "orders.new", nil)
		definite("with a full buffer", err, nats.ErrReconnectBufExceeded)
		lost.n = 0
		publish(t, q, "4")
		nc.Close()
		_, err = p.Publish(watched(t), "orders.new", nil)
		definite("over a closed connection", err, nats.ErrConnectionClosed)
		soon(t, "Refusals", began)
		_, stream := orders(t, s.Connect())
		if got := count(t, stream, "orders.new"); got != 4 {
			t.Errorf("%d messages are stored, want 4", got)
		}
		resign(t, term)
	})
}

// A connection that is closed while a message is under way leaves it in doubt.
func TestPublishOverAConnectionThatIsClosed(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		l := s.Link()
		nc := s.Connect(options(l)...)
		js, _ := orders(t, nc)
		term := campaign(t, of(t, join(t, s, "a"), 0))
		p := fence(t, js, term)
		l.CutReplies()
		time.AfterFunc(100*time.Millisecond, nc.Close)
		began := time.Now()
		_, err := p.Publish(watched(t), "orders.new", nil)
		if !errors.Is(err, nats.ErrConnectionClosed) || !errors.Is(err, election.ErrUnknown) {
			t.Errorf("Publish = %v, want ErrConnectionClosed and ErrUnknown", err)
		}
		soon(t, "Publish", began)
		resign(t, term)
	})
}

// While the connection is broken nothing is sent, with a buffer or without: what waits
// there is stored when nobody waits for it any more.
func TestPublishOverABrokenConnection(t *testing.T) {
	for _, size := range []int{-1, nats.DefaultReconnectBufSize} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
				l := s.Link()
				js, stream := orders(t, s.Connect(append(options(l), nats.ReconnectBufSize(size))...))
				term := campaign(t, of(t, join(t, s, "a"), 0))
				p := fence(t, js, term)
				l.Cut()
				l.Kill()
				time.Sleep(100 * time.Millisecond)
				if _, err := p.Publish(within(t, time.Second), "orders.new", []byte("1")); !errors.Is(err, nats.ErrDisconnected) || errors.Is(err, election.ErrUnknown) {
					t.Errorf("Publish over a broken connection = %v, want ErrDisconnected without ErrUnknown", err)
				}
				time.AfterFunc(time.Second, l.Heal)
				publish(t, p, "2")
				if got := count(t, stream, "orders.new"); got != 1 {
					t.Errorf("%d messages are stored, want 1", got)
				}
				resign(t, term)
			})
		})
	}
}

// A repetition that waits in the buffer of a broken connection would be sent when the
// stream no longer knows the message again.
func TestPublishIsNotRepeatedTooLate(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		l := s.Link()
		js, stream := orders(t, s.Connect(options(l)...), func(c *jetstream.StreamConfig) { c.Duplicates = 5 * time.Second })
		term := campaign(t, of(t, join(t, s, "a"), 0))
		p := fence(t, js, term)
		for i := range 3 {
			l.CutReplies()
			time.AfterFunc(100*time.Millisecond, func() { l.Cut(); l.Kill() })
			if _, err := p.Publish(within(t, time.Minute), "orders.new", []byte("1")); !errors.Is(err, election.ErrUnknown) {
				t.Errorf("Publish = %v, want ErrUnknown", err)
			}
			time.Sleep(time.Minute)
			l.Heal()
			time.Sleep(time.Second)
			if got := count(t, stream, "orders.new"); got != i+1 {
				t.Fatalf("%d messages are stored, want %d", got, i+1)
			}
		}
		// In time it is repeated, and known again.
		l.CutReplies()
		time.AfterFunc(100*time.Millisecond, func() { l.Cut(); l.Kill() })
		time.AfterFunc(time.Second, l.Heal)
		ack, err := p.Publish(within(t, time.Minute), "orders.new", []byte("1"))
		if err != nil || !ack.Duplicate {
			t.Errorf("Publish = %+v, %v; want a duplicate", ack, err)
		}
		if got := count(t, stream, "orders.new"); got != 4 {
			t.Errorf("%d messages are stored, want 4", got)
		}
		resign(t, term)
	})
}

// Servers that replicate refuse the repetition of a message that is under way: its outcome
// is about to be known.
func TestPublishIsRepeatedWhileInProcess(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		js, stream := orders(t, s.Connect())
		term := campaign(t, of(t, join(t, s, "a"), 0))
		way := &tap{JetStream: js, subject: "orders.new"}
		inProcess := fmt.Errorf("nats: %w", &jetstream.APIError{Code: 409, ErrorCode: 10158, Description: "duplicate message id is in process"})
		way.on = func(n int, send func() (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
			switch n {
			case 0:
				if _, err := send(); err != nil {
					t.Error(err)
				}
				return nil, nats.ErrTimeout
			case 1, 2:
				return nil, inProcess
			}
			return send()
		}
		ack, err := fence(t, way, term).Publish(watched(t), "orders.new", nil)
		if err != nil || !ack.Duplicate || way.n != 4 {
			t.Errorf("Publish = %+v, %v after %d attempts, want a duplicate after 4", ack, err, way.n)
		}
		if got := count(t, stream, "orders.new"); got != 1 {
			t.Errorf("%d messages are stored, want 1", got)
		}
		// It is in doubt for as long as that is all that is known.
		way.n, way.on = 0, func(n int, _ func() (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
			if n == 0 {
				return nil, nats.ErrTimeout
			}
			return nil, inProcess
		}
		if _, err := fence(t, way, term).Publish(within(t, time.Second), "orders.new", nil); !errors.Is(err, election.ErrUnknown) {
			t.Errorf("Publish = %v, want ErrUnknown", err)
		}
		resign(t, term)
	})
}

package fabric_test

import (
	"context"
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

// A mailTap sees the durable messages of a to b as they are published, and can answer them
// in the place of the stream.
type mailTap struct {
	t   *testing.T
	nc  *nats.Conn
	sub *nats.Subscription
}

func tapMail(t *testing.T, s *natstest.Server) mailTap {
	t.Helper()
	nc := s.Connect()
	sub, err := nc.SubscribeSync("fab.c.production.d.b.a")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return mailTap{t, nc, sub}
}

// next returns where the next message, which must be data, is to be acknowledged.
func (p mailTap) next(data string) (at string) {
	p.t.Helper()
	m, err := p.sub.NextMsg(2 * time.Second)
	if err != nil || string(m.Data) != data {
		p.t.Fatalf("published %v, %v, want %q", m, err, data)
	}
	return m.Reply
}

func (p mailTap) answer(at, data string) {
	p.t.Helper()
	if err := p.nc.Publish(at, []byte(data)); err != nil {
		p.t.Fatal(err)
	}
}

// drain forgets the repetitions of what was sent.
func (p mailTap) drain() {
	for _, err := p.sub.NextMsg(3 * time.Second); err == nil; _, err = p.sub.NextMsg(3 * time.Second) {
	}
}

// used has a message acknowledged, and returns the address for the one after it.
func (p mailTap) used(a *fabric.Node) (at string) {
	p.t.Helper()
	mustPost(p.t, a, "b", "before")
	return p.next("before")
}

// sending has a send data, and gives its error to the channel.
func sending(t *testing.T, a *fabric.Node, data string) <-chan error {
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	go func() {
		defer cancel()
		ended <- post(ctx, a, "b", data)
	}()
	return ended
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

const refused = `{"error":{"code":503,"err_code":%d,"description":"refused"},"stream":"fab_c_production_mail","seq":0}`

// The address at which one message was acknowledged is used for the next. What comes there
// that may be about the one before, or is not of the same stream, is not taken for an answer
// to it: it is asked again, elsewhere.
func TestMailLateAnswers(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		mustPost(t, a, "b", "makes the stream")
		tap := tapMail(t, s)
		if first, second := tap.used(a), tap.used(a); first != second {
			t.Errorf("acknowledged at %s, then at %s", first, second)
		}
		for _, late := range []string{
			`{"stream":"fab_c_production_mail","seq":LAST}`,
			`{"stream":"fab_c_production_mail","seq":LAST,"duplicate":true}`,
			`{"stream":"fab_c_production_mail","seq":1}`,
			`{"stream":"fab_c_production_mail","domain":"another","seq":9223372036854775807}`,
			`{"stream":"another","seq":9223372036854775807}`,
			fmt.Sprintf(refused, 10077),
			fmt.Sprintf(refused, 10054),
			fmt.Sprintf(refused, 10023),
			fmt.Sprintf(refused, 10008),
			`nonsense`,
		} {
			at := tap.used(a)
			late = strings.Replace(late, "LAST", fmt.Sprint(lastMail(t, s)), 1)
			muteMail(t, s, true)
			ended := sending(t, a, late)
			if got := tap.next(late); got != at {
				t.Fatalf("acknowledged at %s, then at %s", at, got)
			}
			began := time.Now()
			tap.answer(at, late)
			if got := tap.next(late); got == at {
				t.Errorf("%s: repeated at the same address", late)
			}
			if took := time.Since(began); took > 500*time.Millisecond {
				t.Errorf("%s: repeated after %v", late, took)
			}
			select {
			case err := <-ended:
				t.Fatalf("%s: taken for an answer to the next: %v", late, err)
			default:
			}
			muteMail(t, s, false)
			if err := <-ended; err != nil {
				t.Errorf("%s: %v", late, err)
			}
			tap.drain()
		}
		if first, second := tap.used(a), tap.used(a); first != second {
			t.Errorf("in the end acknowledged at %s, then at %s", first, second)
		}
	})
}

// A message that may be stored is not said to be refused: when an answer was not looked at,
// only a refusal that the server gives to what it has not stored is definite.
func TestMailRefusedAgain(t *testing.T) {
	for code, want := range map[int]error{
		10077: fabric.ErrMailboxFull, // looked for the id before
		10054: fabric.ErrTooLarge,
		10023: fabric.ErrUnknownOutcome, // the first attempt may have filled it
		10047: fabric.ErrUnknownOutcome,
		10071: fabric.ErrUnknownOutcome,
	} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			a := join(t, s, "a")
			mustPost(t, a, "b", "makes the stream")
			tap := tapMail(t, s)
			at := tap.used(a)
			muteMail(t, s, true) // it stores what comes
			ended := sending(t, a, "1")
			if got := tap.next("1"); got != at {
				t.Fatalf("acknowledged at %s, then at %s", at, got)
			}
			tap.answer(at, fmt.Sprintf(refused, 10077)) // of the message before, for all that is known
			tap.answer(tap.next("1"), fmt.Sprintf(refused, code))
			err := <-ended
			for _, is := range []error{fabric.ErrMailboxFull, fabric.ErrTooLarge, fabric.ErrUnknownOutcome} {
				if errors.Is(err, is) != (is == want) {
					t.Errorf("refused with %d: %v, want %v", code, err, want)
				}
			}
		})
	}
}

// An answer that was not looked at may have been the one: a message that is given up after
// it may be stored.
func TestMailGivenUpAfterLateAnswer(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		mustPost(t, a, "b", "makes the stream")
		mustPost(t, a, "b", "before")
		muteMail(t, s, true)
		nc, codes := s.Connect(), []int{10077, 10008} // refused, then busy
		_, err := nc.Subscribe("fab.c.production.d.b.a", func(m *nats.Msg) {
			_ = m.Respond(fmt.Appendf(nil, refused, codes[0]))
			codes = codes[len(codes)-1:]
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := post(within(t, 800*time.Millisecond), a, "b", "1"); !errors.Is(err, fabric.ErrUnknownOutcome) {
			t.Errorf("given up: %v", err)
		}
	})
}

// A stream that begins its numbers anew, as one from a backup does, has messages
// acknowledged like any other.
func TestMailStreamBeginsAnew(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := join(t, s, "a")
		mustPost(t, a, "b", "1")
		js, cfg := mailStream(t, s)
		if err := js.DeleteStream(t.Context(), cfg.Name); err != nil {
			t.Fatal(err)
		}
		cfg.FirstSeq = 1
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		mustPost(t, a, "b", "2", "3")
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		if n := waiting(t, a, "b"); n != 2 {
			t.Errorf("%d messages are stored, want 2", n)
		}
	})
}

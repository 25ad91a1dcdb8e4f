package fabric

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A mailBench is a node that sends durable messages and one with a mailbox, and on the
// same connections a stream and a consumer of the same settings.
type mailBench struct {
	a, b *Node
	js   jetstream.JetStream
	done chan struct{}
	left int // raw messages that are still to come
	next int // number of the next raw message
}

const mailWindow = 256 // messages on their way to be stored, and to be acknowledged

func newMailBench(b *testing.B) *mailBench {
	s := natstest.Start(b)
	tx, rx := s.Connect(nats.SkipSubjectValidation()), s.Connect(nats.SkipSubjectValidation())
	start := func(nc *nats.Conn, pid PID, box bool) *Node {
		return startNode(b, nc, pid, nil, func(c *courierConfig) {
			c.mailbox = Mailbox{On: box, InFlight: mailWindow}
			c.ackWait = DefaultLease
			c.mail = newOffice(Config{Cluster: "c1", Env: "test", Mailbox: Mailbox{Quota: 1e6}, Logger: slog.New(slog.DiscardHandler)}, &link{nc: nc}, c.subjects)
		})
	}
	l := &mailBench{a: start(tx, "a", false), b: start(rx, "b", true), done: make(chan struct{}, 1)}
	if err := l.b.courier.mail.begin(b.Context()); err != nil {
		b.Fatal(err)
	}
	go func() {
		_ = l.b.Handle(b.Context(), 1, func(context.Context, *Message) ([]byte, error) {
			if l.left--; l.left == 0 {
				l.done <- struct{}{}
			}
			return nil, nil
		})
	}()
	l.rawConsumer(b, rx)
	var err error
	if l.js, err = jetstream.New(tx, jetstream.WithPublishAsyncMaxPending(mailWindow)); err != nil {
		b.Fatal(err)
	}
	return l
}

func (l *mailBench) rawConsumer(b *testing.B, rx *nats.Conn) {
	js, err := jetstream.New(rx)
	if err != nil {
		b.Fatal(err)
	}
	st, err := js.Stream(b.Context(), "fab_c1_test_mail")
	if err != nil {
		b.Fatal(err)
	}
	cfg := st.CachedInfo().Config
	cfg.Name, cfg.Subjects = "raw", []string{"raw.c1.test.d.*.*"}
	if _, err := js.CreateStream(b.Context(), cfg); err != nil {
		b.Fatal(err)
	}
	cons, err := js.Consumer(b.Context(), "fab_c1_test_mail", "mb-b")
	if err != nil {
		b.Fatal(err)
	}
	box := cons.CachedInfo().Config
	box.FilterSubject = "raw.c1.test.d.b.*"
	if cons, err = js.CreateConsumer(b.Context(), "raw", box); err != nil {
		b.Fatal(err)
	}
	cc, err := cons.Consume(func(m jetstream.Msg) {
		if err := m.Ack(); err != nil {
			b.Error(err)
		}
		if l.left--; l.left == 0 {
			l.done <- struct{}{}
		}
	}, jetstream.PullMaxMessages(mailWindow))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cc.Stop)
}

// raw stores n messages by PublishAsync, and returns when all were consumed.
func (l *mailBench) raw(b *testing.B, n int, data []byte) {
	l.left = n
	for range n {
		l.next++
		if _, err := l.js.PublishAsync("raw.c1.test.d.b.a", data,
			jetstream.WithMsgID("a.NNNNNNNN."+strconv.Itoa(l.next)), jetstream.WithStallWait(time.Minute)); err != nil {
			b.Fatal(err)
		}
	}
	<-l.js.PublishAsyncComplete()
	<-l.done
}

// durable does the same by SendMsg.
func (l *mailBench) durable(b *testing.B, n int, data []byte) {
	l.left = n
	var wg sync.WaitGroup
	for range mailWindow {
		wg.Go(func() {
			for range n / mailWindow {
				if err := l.a.SendMsg(b.Context(), &Message{To: "b", Mode: Durable, Data: data}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	<-l.done
}

// BenchmarkDurable compares SendMsg of Mode Durable by 256 callers, and Handle, with
// PublishAsync of as many outstanding messages, and Consume: the same settings of the
// streams and the consumers, ids and acknowledgements.
func BenchmarkDurable(b *testing.B) {
	const round = 40 * mailWindow
	for _, size := range []int{16, 128, 1024} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l := newMailBench(b)
			data := make([]byte, size)
			l.raw(b, round, data)
			l.durable(b, round, data)
			var wall, cpu []float64
			var total time.Duration
			for b.Loop() {
				raw := measure(func() { l.raw(b, round, data) })
				node := measure(func() { l.durable(b, round, data) })
				wall = append(wall, float64(raw.wall)/float64(node.wall))
				cpu = append(cpu, float64(raw.cpu)/float64(node.cpu))
				total += node.wall
			}
			b.ReportMetric(median(wall), "x-raw")
			b.ReportMetric(median(cpu), "x-raw-cpu")
			b.ReportMetric(float64(round*b.N)/total.Seconds(), "msg/s")
			if s := l.b.Stats(); s.Invalid != 0 || s.Parked != 0 || s.Repeated != 0 {
				b.Errorf("%+v", s)
			}
		})
	}
}

// BenchmarkDurableAlone shows what strict order costs: one message in flight.
func BenchmarkDurableAlone(b *testing.B) {
	l := newMailBench(b)
	data := make([]byte, 128)
	for b.Loop() {
		l.left = 1
		if err := l.a.SendMsg(b.Context(), &Message{To: "b", Mode: Durable, Data: data}); err != nil {
			b.Fatal(err)
		}
		<-l.done
	}
}

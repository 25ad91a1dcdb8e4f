package clustertalk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	cluster "github.com/natsfabric/natsfabric/fabric/classic/clustertalk"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// patience bounds a test of ClusterTalk's own.
const patience = 60 * time.Second

func join(t *testing.T, pid fabric.PID, tune func(*fabric.Config)) *fabric.Node {
	t.Helper()
	cfg := fabric.Config{Cluster: "c", PID: pid}
	tune(&cfg)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	n, err := fabric.Join(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Leave(context.WithoutCancel(t.Context())) })
	return n
}

func serve(t *testing.T, n *fabric.Node, cfg cluster.Config) *cluster.Member {
	t.Helper()
	s, err := cluster.New(n, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		_ = s.Close(ctx) // what is left behind is the test's business
	})
	return s
}

// start starts servers 0 to n-1, which know each other.
func start(t *testing.T, n int) []*cluster.Member {
	t.Helper()
	s := natstest.Start(t)
	nodes := make([]*fabric.Node, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			nodes[i] = join(t, fabric.PID(strconv.Itoa(i)), func(c *fabric.Config) { c.URL = s.URL() })
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	servers := make([]*cluster.Member, n)
	for i, node := range nodes {
		for range node.Changes(ctx) {
			if len(node.View().Members) == n {
				break
			}
		}
		servers[i] = serve(t, node, cluster.Config{OnError: func(e *cluster.Envelope, err error) { t.Errorf("%d: %+v: %v", i, e, err) }})
		if got := len(servers[i].Peers()); got != n-1 {
			t.Fatalf("server %d has %d peers", i, got)
		}
	}
	return servers
}

// sendMessages is ClusterTalk's, without its pauses.
func sendMessages(outbox chan *cluster.Envelope, count int, to int, from int) {
	for i := range count {
		outbox <- &cluster.Envelope{Pid: to, MsgId: int64(i), Msg: strconv.Itoa(from) + ":" + strconv.Itoa(i)}
	}
}

// receive returns an error unless each of the senders' messages comes once and in
// order, and nothing else does. (ClusterTalk was content with 95 of 100.)
func receive(s *cluster.Member, count int, senders ...int) error {
	next := map[int]int{}
	deadline := time.After(patience)
	for range count * len(senders) {
		select {
		case e, ok := <-s.Inbox():
			if !ok {
				return fmt.Errorf("%d: the inbox is closed", s.Pid())
			}
			if want := fmt.Sprintf("%d:%d", e.Pid, next[e.Pid]); e.Msg != want || e.MsgId != int64(next[e.Pid]) {
				return fmt.Errorf("%d: received %+v, want %s", s.Pid(), e, want)
			}
			next[e.Pid]++
		case <-deadline:
			return fmt.Errorf("%d: received only %v", s.Pid(), next)
		}
	}
	for _, from := range senders {
		if next[from] != count {
			return fmt.Errorf("%d: received %v", s.Pid(), next)
		}
	}
	return nil
}

func TestOneWaySend(t *testing.T) {
	servers := start(t, 2)
	const count = 10_000
	go sendMessages(servers[0].Outbox(), count, 1, 0)
	if err := receive(servers[1], count, 0); err != nil {
		t.Fatal(err)
	}
	if err := servers[0].Close(t.Context()); err != nil {
		t.Error(err)
	}
	if got := servers[0].Stats(); got != (cluster.Stats{Sent: count}) {
		t.Errorf("Stats = %+v", got)
	}
	// What passed a channel is counted a moment later.
	for end := time.Now().Add(patience); servers[1].Stats().Received < count && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if got := servers[1].Stats(); got != (cluster.Stats{Received: count}) {
		t.Errorf("Stats = %+v", got)
	}
}

// Five servers, as ClusterTalk has it, but so many messages that it takes seconds.
func TestBroadcast(t *testing.T) {
	servers := start(t, 5)
	const count = 2000
	var wg sync.WaitGroup
	for i, s := range servers {
		go sendMessages(s.Outbox(), count, cluster.BROADCAST, i)
		wg.Go(func() {
			if err := receive(s, count, s.Peers()...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestHugeMessages(t *testing.T) {
	servers := start(t, 2)
	const count, size = 10, 10_000_000
	go func() {
		for i := range count {
			servers[0].Outbox() <- &cluster.Envelope{Pid: 1, Msg: strings.Repeat(strconv.Itoa(i%10), size)}
		}
	}()
	for i := range count {
		select {
		case e := <-servers[1].Inbox():
			if msg, ok := e.Msg.(string); !ok || msg != strings.Repeat(strconv.Itoa(i%10), size) {
				t.Fatalf("message %d has %d bytes, or is another", i, len(msg))
			}
		case <-time.After(patience):
			t.Fatalf("message %d did not come", i)
		}
	}
}

func TestRing(t *testing.T) {
	const size, count = 20, 500
	servers := start(t, size)
	for i := 1; i < size; i++ {
		s := servers[i]
		go func() {
			for e := range s.Inbox() {
				e.Pid = (i + 1) % size
				s.Outbox() <- e // the same envelope goes on
			}
		}()
	}
	go sendMessages(servers[0].Outbox(), count, 1, size-1) // as if from the last
	if err := receive(servers[0], count, size-1); err != nil {
		t.Fatal(err)
	}
}

func TestEnvelopes(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		tune := func(c *fabric.Config) {
			c.NATS = append(natstest.FastOptions(), nats.InProcessServer(s.Provider()))
		}
		type failure struct {
			e   *cluster.Envelope
			err error
		}
		failures := make(chan failure, 10) // more than there are
		a := serve(t, join(t, "1", tune), cluster.Config{
			Mode: fabric.Acked, OnError: func(e *cluster.Envelope, err error) { failures <- failure{e, err} },
		})
		b := serve(t, join(t, "2", tune), cluster.Config{
			Capacity: -1, OnError: func(e *cluster.Envelope, err error) { failures <- failure{e, err} },
		})
		native := join(t, "3", tune)
		named := join(t, "web-1", tune)
		if got := a.Peers(); !reflect.DeepEqual(got, []int{2, 3}) {
			t.Errorf("Peers() = %v, want 2 and 3", got)
		}
		for _, msg := range []any{"", "x", []byte("y"), nil, 7, int64(-7), 1.5, true, []string{"a", "b"}, map[string]any{"k": []any{"v"}}} {
			in := cluster.Envelope{Pid: 2, MsgId: -5, Msg: msg}
			a.Outbox() <- &in
			if e := <-b.Inbox(); e.Pid != 1 || e.MsgId != -5 || !reflect.DeepEqual(e.Msg, msg) {
				t.Errorf("%#v arrived as %+v", msg, e)
			}
			if in.Pid != 2 {
				t.Error("the envelope was changed")
			}
		}

		// What a native node sends is bytes, and what it gets.
		if err := native.Send(t.Context(), "2", []byte("plain")); err != nil {
			t.Fatal(err)
		}
		if e := <-b.Inbox(); e.Pid != 3 || !reflect.DeepEqual(e.Msg, []byte("plain")) {
			t.Errorf("a plain message arrived as %+v", e)
		}
		a.Outbox() <- &cluster.Envelope{Pid: 3, Msg: "hello"}
		if m, err := native.Receive(t.Context()); err != nil || string(m.Data) != "hello" {
			t.Errorf("the native node received %+v, %v", m, err)
		}

		// What cannot be sent, or is no envelope, is told and counted.
		for _, c := range []struct {
			e    *cluster.Envelope
			want error
		}{
			{&cluster.Envelope{Pid: 9, Msg: "nobody"}, fabric.ErrNoPeer},
			{&cluster.Envelope{Pid: -7, Msg: "no pid"}, nil},
			{&cluster.Envelope{Pid: 2, Msg: func() {}}, nil},
			{nil, nil},
		} {
			a.Outbox() <- c.e
			if f := <-failures; f.e != c.e || f.err == nil || c.want != nil && !errors.Is(f.err, c.want) {
				t.Errorf("sending %+v failed with %+v, want %v", c.e, f, c.want)
			}
		}
		for _, m := range []*fabric.Message{{To: "2", Type: "other"}, {To: "2", Type: "C1", Data: []byte("{")}} {
			if err := native.SendMsg(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			if f := <-failures; f.e != nil || f.err == nil {
				t.Errorf("%+v gives %+v", m, f)
			}
		}
		if err := named.Send(t.Context(), "2", nil); err != nil {
			t.Fatal(err)
		}
		<-failures
		_, err := native.Request(t.Context(), "2", nil)
		if e, ok := errors.AsType[*fabric.RemoteError](err); !ok || e.Code == "" {
			t.Errorf("a request gets %v", err)
		}
		<-failures
		if got, want := a.Stats(), (cluster.Stats{Sent: 11, Failed: 4}); got != want {
			t.Errorf("a's Stats = %+v, want %+v", got, want)
		}
		if got, want := b.Stats(), (cluster.Stats{Received: 11, Foreign: 4}); got != want {
			t.Errorf("b's Stats = %+v, want %+v", got, want)
		}
		if _, err := cluster.New(named, cluster.Config{}); !errors.Is(err, fabric.ErrConfig) {
			t.Errorf("New with PID web-1: %v", err)
		}
	})
}

// Close sends what the outbox holds.
func TestCloseSends(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		tune := func(c *fabric.Config) {
			c.NATS = append(natstest.FastOptions(), nats.InProcessServer(s.Provider()))
		}
		a := serve(t, join(t, "1", tune), cluster.Config{})
		b := serve(t, join(t, "2", tune), cluster.Config{})
		const count = cluster.DefaultCapacity
		for i := range count {
			a.Outbox() <- &cluster.Envelope{Pid: 2, MsgId: int64(i), Msg: "1:" + strconv.Itoa(i)}
		}
		if err := a.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := a.Stats().Sent; got != count {
			t.Errorf("%d sent, want %d", got, count)
		}
		if err := receive(b, count, 1); err != nil {
			t.Error(err)
		}
	})
}

// Nothing is lost, repeated or reordered over a restart of the server, and a receiver
// that does not receive makes the sender wait.
func TestReliable(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		tune := func(c *fabric.Config) {
			c.NATS = append(natstest.FastOptions(), nats.InProcessServer(s.Provider()))
		}
		a := serve(t, join(t, "1", tune), cluster.Config{})
		b := serve(t, join(t, "2", tune), cluster.Config{Capacity: -1})
		pad := bytes.Repeat([]byte("x"), 10_000)
		const count = 2500 // with the padding more than the window takes, and the outbox
		sent := make(chan int, 1)
		go func() {
			for i := range count {
				select {
				case a.Outbox() <- &cluster.Envelope{Pid: 2, MsgId: int64(i), Msg: pad}:
				case <-time.After(10 * time.Second): // nobody receives
					sent <- i
					a.Outbox() <- &cluster.Envelope{Pid: 2, MsgId: int64(i), Msg: pad}
				}
			}
		}()
		n := <-sent
		t.Logf("%d messages were sent to somebody who does not receive", n)
		for i := range count {
			if i == n/2 {
				s.Restart()
			}
			if e := <-b.Inbox(); e.MsgId != int64(i) {
				t.Fatalf("received %d, want %d", e.MsgId, i)
			}
		}
		if err := a.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if _, ok := <-a.Inbox(); ok {
			t.Error("the inbox is open after Close")
		}
	})
}

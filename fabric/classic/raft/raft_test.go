package raft_test

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	cluster "github.com/natsfabric/natsfabric/fabric/classic/raft"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// silence is much longer than anything in these tests takes.
const silence = 30 * time.Second

// start starts servers 1 to n as vibhor1403/Raft does: each has a list of all.
func start(t *testing.T, s *natstest.Server, n int) []cluster.Server {
	t.Helper()
	var pids []int
	for i := range n {
		pids = append(pids, i+1)
	}
	var servers []cluster.Server
	for _, pid := range pids {
		node, err := fabric.Join(t.Context(), fabric.Config{Cluster: "c", PID: fabric.PID(strconv.Itoa(pid)), URL: s.URL()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { node.Leave(context.WithoutCancel(t.Context())) })
		m, err := cluster.New(node, cluster.Config{
			Peers: pids, Silence: silence,
			OnError: func(e *cluster.Envelope, err error) { t.Errorf("%d: %+v: %v", pid, e, err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close(context.WithoutCancel(t.Context())) })
		servers = append(servers, m)
	}
	return servers
}

// counts receives until each has so many messages as it is to get, or is silent, and
// returns how many came to each from each.
func counts(servers []cluster.Server, want func(pid int) int) [][]int {
	n := len(servers) + 1
	got := make([][]int, n)
	var wg sync.WaitGroup
	for _, s := range servers {
		row := make([]int, n)
		got[s.Pid()] = row
		wg.Go(func() {
			left := want(s.Pid())
			for e := range s.Inbox() {
				if e.MsgId == int64(row[e.SendBy]) { // in order, and once
					row[e.SendBy]++
				}
				if left--; left == 0 {
					return
				}
			}
		})
	}
	wg.Wait()
	return got
}

// The load test of vibhor1403/Raft: random sends and broadcasts among five, and every
// message counted. Here they are in order, too.
func TestClusterLoad(t *testing.T) {
	const total, sends = 5, 100_000
	servers := start(t, natstest.Start(t), total)
	want := make([][]int, total+1)
	for i := range want[1:] {
		want[i+1] = make([]int, total+1)
	}
	r := rand.New(rand.NewPCG(1, 2))
	message := []string{"hello", "hi", "how are you", "hello its long day", "hoho"}
	plan := make([][]*cluster.Envelope, total+1)
	for range sends {
		// Each pair has its own count, so a message to one is numbered for that one, and a
		// broadcast is one message to each.
		from, to := 1+r.IntN(total), 1+r.IntN(total)
		receivers := []int{to}
		if r.IntN(total+2) == 0 {
			receivers = servers[from-1].Peers()
		}
		for _, to := range receivers {
			if to != from {
				plan[from] = append(plan[from], &cluster.Envelope{SendTo: to, SendBy: from, MsgId: int64(want[to][from]), Msg: message[r.IntN(len(message))]})
				want[to][from]++
			}
		}
	}
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			for _, e := range plan[s.Pid()] {
				s.Outbox() <- e
			}
			close(s.Outbox())
		})
	}
	all := counts(servers, func(pid int) int {
		n := 0
		for _, k := range want[pid] {
			n += k
		}
		return n
	})
	wg.Wait()
	if !reflect.DeepEqual(all, want) {
		t.Errorf("received %v, want %v", all, want)
	}
}

func TestBroadcast(t *testing.T) {
	const total, each = 5, 1000
	servers := start(t, natstest.Start(t), total)
	for _, s := range servers {
		if got := s.Peers(); len(got) != total-1 || slices.Contains(got, s.Pid()) {
			t.Errorf("Peers of %d are %v", s.Pid(), got)
		}
		go func() {
			for i := range each {
				s.Outbox() <- &cluster.Envelope{SendTo: cluster.BROADCAST, MsgId: int64(i), Msg: "hello"}
			}
		}()
	}
	for to, row := range counts(servers, func(int) int { return each * (total - 1) })[1:] {
		for from, n := range row[1:] {
			if from != to && n != each {
				t.Errorf("%d received %d messages of %d, want %d", to+1, n, from+1, each)
			}
		}
	}
	for _, s := range servers {
		// What passed a channel is counted a moment later.
		for end := time.Now().Add(silence); s.MsgSent() < each || s.MsgRcvd() < each*(total-1); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				break
			}
		}
		if s.MsgSent() != each || s.MsgRcvd() != each*(total-1) {
			t.Errorf("%d counts %d sent and %d received", s.Pid(), s.MsgSent(), s.MsgRcvd())
		}
	}
}

// The availability test of vibhor1403/Raft: servers broadcast while one of them has not
// been started, and it receives everything when it is. In mode Durable it need not have
// run ever before.
func TestAvailability(t *testing.T) {
	const total, each = 5, 200
	s := natstest.Start(t)
	pids := []int{1, 2, 3, 4, 5}
	begin := func(pid int) *cluster.Member {
		node, err := fabric.Join(t.Context(), fabric.Config{
			Cluster: "c", PID: fabric.PID(strconv.Itoa(pid)), URL: s.URL(), Mailbox: fabric.Mailbox{On: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { node.Leave(context.WithoutCancel(t.Context())) })
		m, err := cluster.New(node, cluster.Config{
			Peers: pids, Mode: fabric.Durable,
			OnError: func(e *cluster.Envelope, err error) { t.Errorf("%d: %+v: %v", pid, e, err) },
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close(context.WithoutCancel(t.Context())) })
		return m
	}
	var up []*cluster.Member
	var wg sync.WaitGroup
	for _, pid := range pids[:total-1] {
		m := begin(pid)
		up = append(up, m)
		go func() {
			for range m.Inbox() {
			}
		}()
	}
	for _, m := range up {
		wg.Go(func() {
			for i := range each {
				m.Outbox() <- &cluster.Envelope{SendTo: cluster.BROADCAST, MsgId: int64(i), Msg: "hello"}
			}
			if err := m.Close(t.Context()); err != nil {
				t.Errorf("%d: %v", m.Pid(), err)
			}
		})
	}
	wg.Wait()
	last := begin(total)
	next := make([]int64, total+1) // by sender
	for range (total - 1) * each {
		select {
		case e := <-last.Inbox():
			if e.MsgId != next[e.SendBy] || e.SendTo != cluster.BROADCAST || e.Msg != "hello" {
				t.Fatalf("%+v, want number %d", e, next[e.SendBy])
			}
			next[e.SendBy]++
		case <-time.After(30 * time.Second):
			t.Fatalf("only %v of %d messages of each came", next, each)
		}
	}
}

// The length test of vibhor1403/Raft, in which 10^6 bytes are more than a NATS server
// takes at once.
func TestMessageLength(t *testing.T) {
	servers := start(t, natstest.Start(t), 5)
	x := &cluster.Envelope{SendTo: -1, SendBy: 1, Msg: make([]byte, 1_000_000)}
	servers[0].Outbox() <- x
	want, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range servers[1:] {
		select {
		case e := <-s.Inbox():
			if got, err := json.Marshal(e); err != nil || string(got) != string(want) {
				t.Errorf("%d received %d bytes of JSON, want %d", s.Pid(), len(got), len(want))
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%d received nothing", s.Pid())
		}
	}
}

// Values arrive as JSON has them, and a server that is not there is told of.
func TestEnvelopes(t *testing.T) {
	s := natstest.Start(t)
	failed := make(chan error, 10) // more than there are
	var servers []*cluster.Member
	for _, pid := range []fabric.PID{"1", "2"} {
		node, err := fabric.Join(t.Context(), fabric.Config{Cluster: "c", PID: pid, URL: s.URL()})
		if err != nil {
			t.Fatal(err)
		}
		defer node.Leave(context.WithoutCancel(t.Context()))
		m, err := cluster.New(node, cluster.Config{Mode: fabric.Acked, OnError: func(_ *cluster.Envelope, err error) { failed <- err }})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close(context.WithoutCancel(t.Context()))
		servers = append(servers, m)
	}
	a, b := servers[1], servers[0]
	for _, c := range []struct{ in, want any }{
		{"x", "x"}, {7, 7.0}, {nil, nil}, {[]int{1}, []any{1.0}}, {struct{ A int }{1}, map[string]any{"A": 1.0}},
	} {
		a.Outbox() <- &cluster.Envelope{SendTo: 1, SendBy: 77, MsgId: 3, Msg: c.in}
		if e := <-b.Inbox(); e.SendBy != 2 || e.SendTo != 1 || e.MsgId != 3 || !reflect.DeepEqual(e.Msg, c.want) {
			t.Errorf("%#v arrived as %+v", c.in, e)
		}
	}
	a.Outbox() <- &cluster.Envelope{SendTo: 5, Msg: "x"}
	if err := <-failed; !errors.Is(err, fabric.ErrNoPeer) {
		t.Errorf("a send to nobody: %v", err)
	}
	if a.MsgFailed() != 1 || a.MsgSent() != 5 || b.MsgRcvd() != 5 || b.MsgForeign() != 0 {
		t.Errorf("counted %d failed, %d sent, %d received", a.MsgFailed(), a.MsgSent(), b.MsgRcvd())
	}
}

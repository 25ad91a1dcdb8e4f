package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/classic/cluster"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// start starts a node on a link that can be cut. leave has it leave the fabric.
func start(t *testing.T, s *natstest.Server, pid fabric.PID, cfg cluster.Config) (n *cluster.Node, f *fabric.Node, link *natstest.Link) {
	t.Helper()
	link = s.Link()
	f, err := fabric.Join(t.Context(), fabric.Config{
		Cluster: "c", PID: pid, NATS: append(natstest.FastOptions(), nats.InProcessServer(link)),
	})
	if err != nil {
		t.Fatal(err)
	}
	n, err = cluster.New(f, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		_ = f.Leave(ctx)
		_ = n.Close()
	})
	return n, f, link
}

// Callbacks tell of everyone who is here, comes and goes, by itself or not, in order.
func TestCallbacks(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		n1, _, _ := start(t, s, "n1", cluster.Config{})
		_, _, _ = start(t, s, "n2", cluster.Config{})
		if err := n1.Add("n2"); err != nil {
			t.Fatal(err)
		}
		got := make(chan string, 100) // more than there are
		n1.RemoteAdded(func(r cluster.Remote) { got <- "added " + r.String() })
		n1.RemoteRemoved(func(r cluster.Remote) { got <- "removed " + r.String() })
		n1.RemoteChanged(func(rs []cluster.Remote) { got <- fmt.Sprint("changed ", rs) })
		expect := func(want ...string) {
			t.Helper()
			for _, w := range want {
				if g := <-got; g != w {
					t.Fatalf("called %q, want %q", g, w)
				}
			}
		}
		expect("added n2", "changed [n2]")
		_, f3, link := start(t, s, "n3", cluster.Config{})
		expect("added n3", "changed [n2 n3]")
		link.Cut()
		expect("removed n3", "changed [n2]")
		link.Heal()
		expect("added n3", "changed [n2 n3]")
		if err := f3.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		expect("removed n3", "changed [n2]")
		if rs := n1.Remotes(); !slices.Equal(rs, []cluster.Remote{"n2"}) {
			t.Errorf("Remotes() = %v", rs)
		}
		n1.RemoteAdded(nil)
		n1.RemoteRemoved(nil)
		n1.RemoteChanged(nil)
		_, f4, _ := start(t, s, "n4", cluster.Config{})
		if err := n1.Add("n4"); err != nil {
			t.Fatal(err)
		}
		if err := f4.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		for len(n1.Remotes()) > 1 {
			time.Sleep(time.Millisecond) // fake
		}
		synctest.Wait()
		if len(got) > 0 {
			t.Errorf("%q was called, and nobody asked for it", <-got)
		}
	})
}

// A callback may set callbacks, send, and block: what is known stays current, and one
// that was replaced is not called any more.
func TestCallbackBlocks(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		n1, _, _ := start(t, s, "n1", cluster.Config{})
		entered, leave := make(chan struct{}), make(chan struct{})
		got := make(chan cluster.Remote, 10) // more than there are
		n1.RemoteAdded(func(cluster.Remote) {
			close(entered) // panics if it is called twice
			<-leave
		})
		start(t, s, "n2", cluster.Config{})
		<-entered
		start(t, s, "n3", cluster.Config{})
		if err := n1.Add("n3"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // now a call of the first callback is due
		n1.RemoteAdded(func(r cluster.Remote) {
			n1.RemoteRemoved(func(cluster.Remote) {})
			if err := n1.Send(r, []byte("welcome")); err != nil {
				t.Error(err)
			}
			got <- r
		})
		synctest.Wait()
		if len(got) != 0 {
			t.Error("two callbacks run at once")
		}
		close(leave)
		if a, b := <-got, <-got; a != "n2" || b != "n3" {
			t.Errorf("added %s and %s, want n2 and n3", a, b)
		}
	})
}

func TestMessages(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		errs := make(chan error, 10) // more than there are
		n1, _, _ := start(t, s, "n1", cluster.Config{})
		n2, f2, _ := start(t, s, "n2", cluster.Config{Capacity: 1, OnError: func(err error) { errs <- err }})
		if err := errors.Join(n1.Add("n2"), n2.Add("n1")); err != nil {
			t.Fatal(err)
		}
		n1.Broadcast([]byte("from node1"))
		n2.Broadcast([]byte("from node2"))
		m1, m2 := <-n1.Inbox, <-n2.Inbox
		if string(m1.Payload) != "from node2" || m1.From != n2.Addr() || string(m2.Payload) != "from node1" || m2.From != n1.Addr() {
			t.Errorf("received %+v and %+v", m1, m2)
		}
		const count = 1000 // more than the inbox has room for
		go func() {
			for i := range count {
				if err := n1.Send("n2", fmt.Append(nil, i)); err != nil {
					t.Error(err)
				}
			}
		}()
		for i := range count {
			if m := <-n2.Inbox; string(m.Payload) != fmt.Sprint(i) {
				t.Fatalf("received %s, want %d", m.Payload, i)
			}
			if i == count/2 {
				s.Restart()
			}
		}
		if err := n1.Send("n9", nil); !errors.Is(err, fabric.ErrNoPeer) {
			t.Errorf("a send to nobody: %v", err)
		}
		if err := n1.Add("n9"); !errors.Is(err, fabric.ErrNoPeer) {
			t.Errorf("adding nobody: %v", err)
		}
		_, err := f2.Request(t.Context(), "n2", nil)
		if e, ok := errors.AsType[*fabric.RemoteError](err); !ok || e.Code != cluster.CodeNoRequests || <-errs == nil {
			t.Errorf("a request gets %v", err)
		}
		if err := n1.Close(); err != nil {
			t.Error(err)
		}
		if _, ok := <-n1.Inbox; ok {
			t.Error("the inbox is open after Close")
		}
		if err := n1.Send("n2", nil); err == nil {
			t.Error("a closed node sends")
		}
	})
}

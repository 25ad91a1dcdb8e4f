package balance_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"

	"github.com/nats-io/nats.go"
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), d)
	t.Cleanup(cancel)
	return ctx
}

func joinNode(t *testing.T, s *natstest.Server, pid string) (*fabric.Node, *natstest.Link) {
	t.Helper()
	l := s.Link()
	n, err := fabric.Join(within(t, time.Minute), fabric.Config{
		Cluster: "c", PID: fabric.PID(pid), NATS: append(natstest.FastOptions(), nats.InProcessServer(l)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Leave(within(t, time.Second)) })
	return n, l
}

// The work of a share takes longer to stop than a lease. The others must not get
// its indices before, nor may the PID be given back.
func TestNodeLeaveWaitsForOnChange(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _ := joinNode(t, s, "a")
		b, _ := joinNode(t, s, "b")
		const stopping = 20 * time.Second
		var stopped time.Time
		_, err := balance.Join(within(t, time.Minute), a, balance.Config{Group: "g", OnChange: func(s balance.Share) {
			if s.First < 0 {
				time.Sleep(stopping)
				stopped = time.Now()
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		gb, err := balance.Join(within(t, time.Minute), b, balance.Config{Group: "g"})
		if err != nil {
			t.Fatal(err)
		}
		alone := make(chan time.Time, 1)
		go func() {
			for s, err := range gb.Shares(within(t, time.Minute)) {
				if err == nil && s.Total == 1 {
					alone <- time.Now()
					break
				}
			}
		}()
		if err := a.Leave(within(t, time.Minute)); err != nil {
			t.Errorf("Leave: %v", err)
		}
		if at := <-alone; stopped.IsZero() || at.Before(stopped) {
			t.Errorf("the others got the indices at %v, while OnChange ran until %v", at, stopped)
		}
	})
}

// A Join that fails while the server is away leaves nothing behind: not the name
// reserved, nor a wish that gives indices to nobody.
func TestJoinThatFailedCanBeRepeated(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, link := joinNode(t, s, "a")
		b, _ := joinNode(t, s, "b")
		gb, err := balance.Join(within(t, time.Minute), b, balance.Config{Group: "g"})
		if err != nil {
			t.Fatal(err)
		}
		link.CutReplies()
		if _, err := balance.Join(within(t, time.Second), a, balance.Config{Group: "g"}); err == nil {
			t.Fatal("Join succeeded without an answer")
		}
		link.Heal()
		time.Sleep(time.Minute)
		if s := gb.Share(); s.Total != 1 {
			t.Errorf("share %v: a member that did not join has indices", s)
		}
		ga, err := balance.Join(within(t, time.Minute), a, balance.Config{Group: "g"})
		if errors.Is(err, balance.ErrJoined) {
			t.Fatal("a Join that failed keeps the group's name")
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := ga.Leave(within(t, time.Minute)); err != nil {
			t.Error(err)
		}
	})
}

// The members of the fabric come and go, those of the group do not: the group's
// coordinator is heard all the same, or everybody would stand by for it.
func TestBeaconWhileTheFabricChanges(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _ := joinNode(t, s, "a")
		if _, err := balance.Join(within(t, time.Minute), a, balance.Config{Group: "g"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		nc := s.Connect()
		beacons, err := nc.SubscribeSync("fab.c.production.y.view-g-g.*")
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			b, _ := joinNode(t, s, "b")
			time.Sleep(2 * time.Second)
			if err := b.Leave(within(t, time.Second)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
		}
		if n, _, _ := beacons.Pending(); n < 4 {
			t.Errorf("%d beacons in 40 s, want one each 5 s", n)
		}
	})
}

// The member that coordinates its group leaves it: at once, and the other goes on.
func TestCoordinatorLeavesItsGroup(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _ := joinNode(t, s, "a")
		b, _ := joinNode(t, s, "b")
		ga, err := balance.Join(within(t, time.Minute), a, balance.Config{Group: "g"})
		if err != nil {
			t.Fatal(err)
		}
		gb, err := balance.Join(within(t, time.Minute), b, balance.Config{Group: "g"})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := ga.Leave(within(t, 3*time.Second)); err != nil {
			t.Errorf("Leave: %v", err)
		}
		for share, err := range gb.Shares(within(t, time.Minute)) {
			if err != nil {
				t.Fatalf("b never has all indices: %v", err)
			}
			if share.First == 0 && share.Total == 1 {
				break
			}
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("b has all indices after %v, want a settle window", took)
		}
	})
}

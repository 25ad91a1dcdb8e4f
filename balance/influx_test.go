package balance

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// A crowd that came into the fabric, and joins the group with pauses longer than a crowd must be
// quiet, is one view; who leaves does not wait for it.
func TestClusterCrowdOnItsWay(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		first, second := in(t, s, "first", Config{}), in(t, s, "second", Config{})
		first.awaitShare(t, time.Minute, 0, 1, 2)
		var wg sync.WaitGroup
		crowd := func(name string, n int, then func(i int, node *fabric.Node)) {
			for i := range n {
				wg.Go(func() {
					node, err := fabric.Join(limit(t, time.Minute), fabric.Config{
						Cluster: "c", PID: fabric.PID(fmt.Sprint(name, i)), NATS: []nats.Option{nats.InProcessServer(s.Link())}, Inbox: fabric.Inbox{Off: true},
					})
					if err != nil {
						t.Errorf("join: %v", err)
						return
					}
					t.Cleanup(func() { node.Leave(limit(t, time.Second)) })
					then(i, node)
				})
			}
			wg.Wait()
		}
		time.Sleep(10 * time.Second)
		before := first.Share().Epoch
		crowd("n", 60, func(i int, node *fabric.Node) {
			time.Sleep(time.Duration(i/20) * 400 * time.Millisecond)
			if _, err := Join(limit(t, time.Minute), node, Config{Group: "g"}); err != nil {
				t.Errorf("join g: %v", err)
			}
		})
		if got := first.Share(); got.Total != 62 || got.Epoch != before+1 {
			t.Errorf("after a crowd the share is %v of epoch %d, want of all 62 and one epoch after %d", got, got.Epoch, before)
		}
		time.Sleep(10 * time.Second)
		crowd("o", 60, func(int, *fabric.Node) {})
		began := time.Now()
		withdraw(t, second)
		for sh, err := range first.Shares(limit(t, time.Minute)) {
			if err != nil {
				t.Fatal(err)
			}
			if sh.Total == 61 {
				break
			}
		}
		if took := time.Since(began); took > DefaultSettle+50*time.Millisecond {
			t.Errorf("who left was out of the group after %v, want a settle window of %v", took, DefaultSettle)
		}
	})
}

// TestInflux: who came into the fabric in the last second and is not in the group is likely
// to join it, for the rest of that second.
func TestInflux(t *testing.T) {
	view := func(inc uint64, pids ...string) *roster.View {
		v := &roster.View{}
		for _, pid := range pids {
			v.Members = append(v.Members, &roster.Member{PID: pid, Inc: inc})
		}
		return v
	}
	const ms = time.Millisecond
	var x influx
	start := time.Now()
	in := map[string]bool{"c": true}
	for _, step := range []struct {
		after time.Duration
		view  *roster.View
		want  int
		until time.Duration
	}{
		{0, view(1, "a", "b"), 0, 0},                                     // here for an unknown time
		{10 * ms, view(1, "a", "b", "c", "d"), 1, 1010 * ms},             // c is in the group
		{600 * ms, view(1, "a", "c", "d", "e", "f"), 3, 1600 * ms},       // b has left
		{1000 * ms, view(1, "a", "c", "e", "f"), 2, 1600 * ms},           // and d
		{1400 * ms, view(1, "a", "c", "e", "f", "g"), 3, 2400 * ms},      //
		{1700 * ms, view(1, "a", "c", "e", "f", "g"), 1, 2400 * ms},      // a second since e and f came
		{2000 * ms, view(2, "a", "c", "e", "f", "g"), 4, 3000 * ms},      // all came again
		{2000 * ms, view(2, "a", "c", "e", "f", "g"), 4, 3000 * ms},      // looked at again
		{3000*ms + 1, view(2, "a", "c", "e", "f", "g"), 0, 0},            //
		{4000 * ms, view(2, "a", "c", "e", "f", "g", "h"), 1, 5000 * ms}, //
	} {
		now := start.Add(step.after)
		x.see(step.view, now)
		n, until := x.coming(now, func(pid string) bool { return in[pid] })
		if n != step.want || n > 0 && !until.Equal(start.Add(step.until)) || n == 0 && !until.IsZero() {
			t.Errorf("after %v %d are coming until %v, want %d until %v", step.after, n, until.Sub(start), step.want, step.until)
		}
	}
	if len(x.came) != 1 {
		t.Errorf("kept: %v", x.came)
	}
}

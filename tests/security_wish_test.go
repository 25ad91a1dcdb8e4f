package tests

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/fabric"
)

// TestWishForAnother: a member may write under its own key of a group that it wants
// something for another. Nobody gets anything by it. For itself, it may.
func TestWishForAnother(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		r.found()
		c1, m1, evil := r.join("c1"), r.join("m1"), r.join("mallory")
		awaitView(t, c1, members(3))
		ctx := within(t, patience)
		g, err := balance.Join(ctx, c1, balance.Config{Group: "crawl", Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		mallory := r.attacker("mallory")
		wish := func(pid fabric.PID, inc uint64, workers int) {
			m := nats.NewMsg("$KV.fab_t_production.g.crawl.mallory")
			m.Data = fmt.Appendf(nil, `{"key":"g.crawl.mallory","pid":%q,"inc":%d,"workers":%d}`, pid, inc, workers)
			if !mallory.mayPublish(mallory.ctl, m) {
				t.Fatal("a member may not write its own wish")
			}
		}
		wish("m1", m1.Incarnation(), 5)
		wish("c1", c1.Incarnation(), 5)
		time.Sleep(2 * time.Second) // a view would have come long since
		if s := g.Share(); s.Total != 2 || s.Workers != 2 {
			t.Errorf("the share is %v", s)
		}
		wish("mallory", evil.Incarnation(), 5)
		for g.Share().Total != 7 {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("the share is %v", g.Share())
			}
		}
	})
}

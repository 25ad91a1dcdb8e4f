package fabric_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestReliablePassive: a passive sender, which is in no view, is heard on its link as long
// as it uses it.
func TestReliablePassive(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		b := join(t, s, "b")
		await(t, b, "b")
		p := join(t, s, "p", func(c *fabric.Config) { c.Passive = true })
		ctx := within(t, 3*time.Hour)
		for i := range 5 {
			if err := p.SendMsg(ctx, &fabric.Message{To: "b", Mode: fabric.Reliable, Data: fmt.Append(nil, i)}); err != nil {
				t.Fatal(err)
			}
			if err := p.Flush(ctx); err != nil {
				t.Fatal(err)
			}
			if m, err := b.Receive(ctx); err != nil || string(m.Data) != fmt.Sprint(i) {
				t.Fatalf("message %d: %v", i, err)
			}
			time.Sleep(4*time.Minute + 50*time.Second)
		}
	})
}

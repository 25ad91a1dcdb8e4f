package fabric_test

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestLargeIsTheCallersAgain: a large message is sent from the memory of its sender, who may
// change it as soon as SendMsg has returned, and even if that failed: what was lost on the way
// is sent again as it was.
func TestLargeIsTheCallersAgain(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, link := joinLink(t, s, "a", func(c *fabric.Config) { c.Lease = time.Minute })
		b := join(t, s, "b", func(c *fabric.Config) { c.Lease = time.Minute })
		await(t, a, "a", "b")
		rnd := rand.NewChaCha8([32]byte{})
		for i := range 10 {
			data := make([]byte, 3<<20) // fits into the window, once that is known
			rnd.Read(data)
			want := bytes.Clone(data)
			synctest.Wait() // the sender has been told what the receiver took
			if i > 0 {
				link.Cut()
			}
			sent := make(chan error, 1)
			go func() {
				err := a.SendMsg(within(t, time.Minute), &fabric.Message{To: "b", Mode: fabric.Reliable, Data: data})
				clear(data)
				sent <- err
			}()
			if i > 0 {
				time.Sleep(time.Second)
				link.Kill()
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				link.Heal()
			}
			m, err := b.Receive(within(t, time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.Data, want) {
				t.Fatalf("message %d is not what was sent", i)
			}
		}
		if st := b.Stats(); st.Invalid != 0 {
			t.Errorf("%+v", st)
		}
	})
}

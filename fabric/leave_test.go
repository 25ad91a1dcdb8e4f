package fabric

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"
)

// TestRequestAfterLeave: who leaves swallows nothing. A request that is sent when Leave
// has returned fails within a round trip; one that is sent while it runs is answered,
// refused or fails, and is not left to its deadline unless it was being handled.
func TestRequestAfterLeave(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	ctx := deadline(t)
	a, err := Join(ctx, Config{Cluster: "c1", PID: "a", URL: s.ClientURL()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Leave(ctx)
	for round := range 30 {
		b, err := Join(ctx, Config{Cluster: "c1", PID: "b", URL: s.ClientURL()})
		if err != nil {
			t.Fatal(err)
		}
		var taken sync.Map // what was handled, perhaps too late to be answered
		stop, asking := make(chan struct{}), make(chan int)
		go func() {
			swallowed := 0
			for n := 0; ; n++ {
				select {
				case <-stop:
					if n > 0 {
						asking <- swallowed
						return
					}
				default:
				}
				try, cancel := context.WithTimeout(ctx, 2*time.Second)
				_, err := a.Request(try, "b", []byte(strconv.Itoa(n)))
				if _, handled := taken.Load(strconv.Itoa(n)); errors.Is(err, context.DeadlineExceeded) && !handled {
					swallowed++
				}
				cancel()
			}
		}()
		handled := make(chan error, 1)
		go func() {
			handled <- b.Handle(ctx, 2, func(_ context.Context, m *Message) ([]byte, error) {
				taken.Store(string(m.Data), true)
				return nil, nil
			})
		}()
		if err := b.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		began := time.Now()
		if _, err := a.Request(try, "b", nil); !errors.Is(err, ErrNoPeer) && !errors.Is(err, ErrUnreachable) {
			t.Errorf("round %d: a request after Leave: %v after %v, want ErrNoPeer or ErrUnreachable", round, err, time.Since(began))
		}
		cancel()
		close(stop)
		if n := <-asking; n > 0 {
			t.Errorf("round %d: %d requests while it left were swallowed", round, n)
		}
		<-handled
	}
}

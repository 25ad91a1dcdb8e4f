package fabric

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestRequestAfterLeave: who leaves swallows nothing. A request that is sent when Leave
// has returned fails within a round trip; one that is sent while it runs is answered,
// refused or fails, and is not left to its deadline unless it was being handled.
func TestRequestAfterLeave(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	a, err := Join(ctx, Config{Cluster: "c1", PID: "a", URL: s.ClientURL()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Leave(ctx)
	const rounds = 30
	judged := 0
	for round := 0; round < rounds && !t.Failed(); round++ {
		b, err := Join(ctx, Config{Cluster: "c1", PID: "b", URL: s.ClientURL()})
		if err != nil {
			t.Fatal(err)
		}
		var taken sync.Map // what was handled, perhaps too late to be answered
		var current atomic.Int64
		asks, giveUp := context.WithCancel(ctx)
		stop, asking := make(chan struct{}), make(chan int)
		go func() {
			swallowed := 0
			for n := 0; ; n++ {
				current.Store(int64(n))
				select {
				case <-stop:
					if n > 0 {
						asking <- swallowed
						return
					}
				default:
				}
				try, cancel := context.WithTimeout(asks, 10*time.Second)
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
		began := time.Now()
		if err := b.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		inTime := time.Since(began) < departTimeout // else it may have gone without the server's word
		if inTime {
			judged++
		}
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		began = time.Now()
		if _, err := a.Request(try, "b", nil); inTime && !errors.Is(err, ErrNoPeer) && !errors.Is(err, ErrUnreachable) {
			t.Errorf("round %d: a request after Leave: %v after %v, want ErrNoPeer or ErrUnreachable", round, err, time.Since(began))
		}
		cancel()
		close(stop)
		for waits := true; waits; {
			select {
			case n := <-asking:
				if waits = false; n > 0 && inTime {
					t.Errorf("round %d: %d requests while it left were swallowed", round, n)
				}
			case <-time.After(10 * time.Millisecond):
				if _, handled := taken.Load(strconv.FormatInt(current.Load(), 10)); handled || !inTime {
					giveUp() // of this one, no answer is demanded
				}
			}
		}
		giveUp()
		<-handled
	}
	if judged < rounds/2 && !t.Failed() {
		t.Errorf("of %d times, Leave took less than %v only %d times", rounds, departTimeout, judged)
	}
}

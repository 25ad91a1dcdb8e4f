package tests

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestRollback puts an older copy of the store in the server's place. The members
// find out, stop believing, wait until nobody can believe any more, and go on with
// higher tokens and incarnations.
func TestRollback(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		var (
			wg      sync.WaitGroup
			mu      sync.Mutex // guards the fields below
			tokens  []uint64
			current []*election.Term
		)
		ctx, stop := context.WithCancel(t.Context())
		defer func() { stop(); wg.Wait() }()
		var nodes []*fabric.Node
		for i := range 3 {
			n, err := fabric.Join(within(t, patience), fabric.Config{
				Cluster: "t", PID: number(i), NATS: []nats.Option{nats.InProcessServer(s.Link())},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer leave(t, n)
			nodes = append(nodes, n)
			e, err := election.New(n, election.Config{Name: "x"})
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				lead := func(term context.Context, l *election.Term) error {
					mu.Lock()
					tokens = append(tokens, l.Token())
					current = append(current, l)
					mu.Unlock()
					select {
					case <-term.Done():
					case <-time.After(7 * time.Second):
					}
					return nil
				}
				for ctx.Err() == nil {
					_ = e.Lead(ctx, lead) // ends with the term, or with ctx
				}
			})
		}
		// Ten looks a second: never two believers.
		wg.Go(func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				mu.Lock()
				valid := 0
				for _, l := range current {
					if l.Valid() {
						valid++
					}
				}
				mu.Unlock()
				if valid > 1 {
					t.Errorf("%d believers", valid)
				}
			}
		})
		time.Sleep(20 * time.Second)
		old := t.TempDir()
		s.Stop()
		if err := os.CopyFS(old, os.DirFS(s.StoreDir())); err != nil {
			t.Fatal(err)
		}
		s.Start()
		time.Sleep(time.Minute)
		incarnations := map[fabric.PID]uint64{}
		for _, n := range nodes {
			incarnations[n.PID()] = n.Incarnation()
		}
		s.Stop()
		mu.Lock()
		before := len(tokens)
		mu.Unlock()
		if err := os.RemoveAll(s.StoreDir()); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(s.StoreDir(), os.DirFS(old)); err != nil {
			t.Fatal(err)
		}
		s.Start()
		time.Sleep(time.Minute)

		mu.Lock()
		defer mu.Unlock()
		if before < 5 || len(tokens) < before+3 {
			t.Errorf("%d terms before, %d after, want both", before, len(tokens)-before)
		}
		for i := 1; i < len(tokens); i++ {
			if tokens[i] <= tokens[i-1] {
				t.Errorf("tokens fell: %v", tokens)
				break
			}
		}
		for _, n := range nodes {
			if n.Incarnation() <= incarnations[n.PID()] {
				t.Errorf("%s has incarnation %d, had %d: it did not notice", n.PID(), n.Incarnation(), incarnations[n.PID()])
			}
			if len(n.View().Members) != len(nodes) {
				t.Errorf("%s sees %v", n.PID(), n.View().Members)
			}
		}
	})
}

// TestRollbackBehindTheBack: the server comes back without what it had acknowledged while a
// leader is cut off, and has gone past all that it forgot when that one returns. So no
// revision shows it, and nobody tells: the leader looks because its connection was away.
func TestRollbackBehindTheBack(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		join := func(i int, l *natstest.Link) *election.Election {
			n, err := fabric.Join(within(t, patience), fabric.Config{
				Cluster: "t", PID: number(i), NATS: append(natstest.FastOptions(), nats.InProcessServer(l)),
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { leave(t, n) })
			e, err := election.New(n, election.Config{Name: "x", HoldOnSuspend: true})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		link := s.Link()
		a, b := join(0, link), join(1, s.Link())
		campaign := func(e *election.Election) *election.Term {
			term, err := e.Campaign(within(t, 5*time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			return term
		}
		if err := campaign(b).Resign(within(t, patience)); err != nil {
			t.Fatal(err)
		}
		old := t.TempDir()
		s.Stop()
		if err := os.CopyFS(old, os.DirFS(s.StoreDir())); err != nil {
			t.Fatal(err)
		}
		s.Start()
		time.Sleep(2 * time.Second)
		first := campaign(a)
		s.Stop()
		link.Cut()
		if err := os.RemoveAll(s.StoreDir()); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(s.StoreDir(), os.DirFS(old)); err != nil {
			t.Fatal(err)
		}
		s.Start()
		time.AfterFunc(8*time.Second, link.Heal) // the other leads, and has ended nobody
		second := campaign(b)
		for range 600 {
			if first.Valid() && second.Valid() {
				t.Fatal("two believers")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if second.Token() <= first.Token() {
			t.Errorf("token %d after %d", second.Token(), first.Token())
		}
	})
}

package election_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

var many = flag.Int("many", 2000, "elections of TestManyElectionsCostOneSession")

// traffic counts what a fabric's nodes send.
type traffic struct {
	mu   sync.Mutex
	sent map[string]int
}

// listen tells writes of the bucket by their kind of key, calls of JetStream, and
// signals.
func (c *traffic) listen(t *testing.T, nc *nats.Conn) {
	t.Helper()
	for _, subject := range []string{"$KV.fab_c_production.>", "$JS.API.>", "fab.c.production.y.>"} {
		_, err := nc.Subscribe(subject, func(m *nats.Msg) {
			kind := "read"
			if key, ok := strings.CutPrefix(m.Subject, "$KV.fab_c_production."); ok {
				kind = "write " + strings.SplitN(key, ".", 2)[0]
				if strings.HasPrefix(key, "c.") {
					kind = "write " + key[:3]
				}
			} else if strings.HasPrefix(m.Subject, "fab.") {
				kind = "signal " + strings.SplitN(m.Subject, ".", 6)[4]
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.sent[kind]++
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// during counts what is sent in the time given.
func (c *traffic) during(d time.Duration) map[string]int {
	c.mu.Lock()
	c.sent = map[string]int{}
	c.mu.Unlock()
	time.Sleep(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.sent)
}

// quietly joins without a log.
func quietly(c *fabric.Config) { c.Logger = nil }

// A node that leads thousands of elections sends what one sends that leads one; a lost
// session ends them all, and one write makes all of them free.
func TestManyElectionsCostOneSession(t *testing.T) {
	n := *many
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a", quietly)
		b := join(t, s, "b", quietly)
		counter := &traffic{sent: map[string]int{}}
		counter.listen(t, s.Connect())
		elect := func(i int) *election.Term {
			e, err := election.New(a, election.Config{Name: fmt.Sprint("e", i)})
			if err != nil {
				t.Fatal(err)
			}
			term, err := e.Campaign(within(t, 10*time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			return term
		}
		terms := make([]*election.Term, n)
		terms[0] = elect(0)
		one := counter.during(10 * time.Minute)

		var wg sync.WaitGroup
		for w := range 16 {
			wg.Go(func() {
				for i := 1 + w; i < n; i += 16 {
					terms[i] = elect(i)
				}
			})
		}
		wg.Wait()
		time.Sleep(time.Second) // until all of that is counted
		all := counter.during(10 * time.Minute)
		t.Logf("sent in ten minutes with 1 term: %v, with %d: %v", one, n, all)
		if one["write s"] == 0 || one["read"] == 0 {
			t.Fatalf("nothing was counted: %v", one)
		}
		for kind, got := range all {
			if limit := one[kind]*11/10 + 5; got > limit {
				t.Errorf("%d of %q in ten minutes with %d terms, %d with one", got, kind, n, one[kind])
			}
		}
		for i, term := range terms {
			if !term.Valid() || term.Number() != 1 {
				t.Fatalf("term %d of election %d, valid %t", term.Number(), i, term.Valid())
			}
		}

		crash(a, la)
		synctest.Wait() // Leave waits for nothing: its context has ended
		for i, term := range terms {
			if term.Valid() || term.Context().Err() == nil {
				t.Fatalf("the term of election %d is valid after its session ended", i)
			}
		}
		gone := counter.during(2 * ttl)
		t.Logf("sent in two leases after the crash: %v", gone)
		if got := gone["write c.p"]; got < 1 || got > 2 {
			t.Errorf("%d writes of a PID's claim after the crash, want one", got)
		}
		if got := gone["write c.e"]; got != 0 {
			t.Errorf("%d writes of elections' claims after the crash, want none", got)
		}
		for i := 0; i < n; i += n / 10 {
			e, err := election.New(b, election.Config{Name: fmt.Sprint("e", i)})
			if err != nil {
				t.Fatal(err)
			}
			term, err := e.Try(within(t, time.Second))
			if err != nil || term.Number() != 2 {
				t.Fatalf("Try of election %d after the crash: %v", i, err)
			}
			resign(t, term)
		}
	})
}

// A lease that lapses ends all terms at the same moment.
func TestALapseEndsAllTerms(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, la := joinLink(t, s, "a")
		var terms []*election.Term
		for i := range 50 {
			e, err := election.New(a, election.Config{Name: fmt.Sprint("e", i)})
			if err != nil {
				t.Fatal(err)
			}
			terms = append(terms, campaign(t, e))
		}
		la.Cut()
		<-terms[0].Context().Done()
		for i, term := range terms {
			if term.Valid() {
				t.Errorf("the term of election %d is valid", i)
			}
			<-term.Context().Done()
			if cause := context.Cause(term.Context()); !errors.Is(cause, election.ErrLost) {
				t.Errorf("cause of election %d = %v, want ErrLost", i, cause)
			}
		}
		la.Heal()
	})
}

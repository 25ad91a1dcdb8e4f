package lease_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// within returns a context for a step that must not take longer.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), d)
	t.Cleanup(cancel)
	return ctx
}

// A tap is a way to a server that tells what the client writes, before it does.
type tap struct {
	*natstest.Link
	write func([]byte)
}

type tapped struct {
	net.Conn
	write func([]byte)
}

func (t tap) InProcessConn() (net.Conn, error) {
	c, err := t.Link.InProcessConn()
	return &tapped{c, t.write}, err
}

func (c *tapped) Write(b []byte) (int, error) {
	c.write(b)
	return c.Conn.Write(b)
}

// startTapped starts a process whose answers are cut as soon as it writes key.
func startTapped(t *testing.T, s *natstest.Server, pid, key string) *proc {
	t.Helper()
	link := s.Link()
	var once sync.Once
	cut := func(b []byte) {
		if bytes.Contains(b, []byte("HPUB $KV.fab_test_production."+key+" ")) {
			once.Do(link.CutReplies)
		}
	}
	nc, err := nats.Connect("", append(natstest.FastOptions(), nats.InProcessServer(tap{link, cut}), nats.ReconnectBufSize(-1))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b := bucket(t, nc)
	if err := b.Open(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	session, err := lease.Start(within(t, time.Minute), b, lease.Config{PID: pid, Lease: ttl, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return &proc{session, link, nc}
}

// Nothing is valid any more when the record is sent that says so.
func TestLeaveEndsWhatIsHeldBeforeItSaysSo(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		link := s.Link()
		var hold *lease.Hold
		said, held := 0, false
		look := func(b []byte) {
			if bytes.Contains(b, []byte(`"state":"left"`)) {
				said, held = said+1, held || hold.Valid(0)
			}
		}
		nc, err := nats.Connect("", append(natstest.FastOptions(), nats.InProcessServer(tap{link, look}), nats.ReconnectBufSize(-1))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		b := bucket(t, nc)
		if err := b.Open(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		session, err := lease.Start(within(t, time.Minute), b, lease.Config{PID: "a", Lease: ttl, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		p := &proc{session, link, nc}
		if hold = stateOf(p); !hold.Valid(0) {
			t.Fatal("the hold is not valid to begin with")
		}
		p.leave(t)
		if said == 0 || held {
			t.Errorf("said %d times that it has left; the hold was valid then: %t", said, held)
		}
	})
}

// A campaign ends while its write is stored but not acknowledged. Nobody acts on
// the claim, and its holder lives: it must be given back.
func TestClaimThatLandedUnacknowledgedIsGivenBack(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := startTapped(t, s, "a", "c.e.x"), start(t, s, "b")
		if _, err := a.Claim("c.e.x").Acquire(within(t, time.Second), 0); err == nil {
			t.Fatal("Acquire succeeded without an answer")
		}
		if h, err := b.Holder(t.Context(), "c.e.x"); err != nil || h.PID != "a" {
			t.Fatalf("holder is %+v, %v: the test shows nothing", h, err)
		}
		a.link.Heal()
		g, err := b.Claim("c.e.x").Acquire(within(t, 2*time.Minute), 0)
		if err != nil {
			t.Fatalf("the claim stays with a campaign that ended: %v", err)
		}
		g.Release(within(t, time.Second))
		a.leave(t)
		b.leave(t)
	})
}

// A term with a grace ended early because renewals were late; the lease went on.
// The next campaign with that grace must get a term.
func TestTermAfterOneThatEndedWithinItsGrace(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := start(t, s, "a")
		const grace = 2 * time.Second
		g, err := a.Claim("c.e.x").Acquire(t.Context(), grace)
		if err != nil {
			t.Fatal(err)
		}
		g.ReleaseWhenLost()
		hold := stateOf(a)
		a.link.Cut()
		<-g.Context().Done()
		a.link.Heal()
		g, err = a.Claim("c.e.x").Acquire(within(t, time.Minute), grace)
		if err != nil {
			t.Fatalf("no term after one that ended within its grace: %v", err)
		}
		time.Sleep(time.Minute)
		if !g.Valid() {
			t.Errorf("term %d has ended at once: %v", g.Term, context.Cause(g.Context()))
		}
		if stateOf(a) != hold {
			t.Error("the lease lapsed: the test shows nothing")
		}
		if g.Term > 3 {
			t.Errorf("it is term %d: terms were taken and given back in a loop", g.Term)
		}
		g.Release(within(t, time.Second))
		a.leave(t)
	})
}

func stateOf(p *proc) *lease.Hold {
	st, _ := p.State()
	return st.Hold
}

// replace loses the bucket and makes it again, closed: as if by another process
// that has not found out yet whether it is alone.
func replace(t *testing.T, nc *nats.Conn) {
	t.Helper()
	const stream = "KV_fab_test_production"
	var info struct {
		Config map[string]any `json:"config"`
	}
	ask := func(verb string, req, resp any) {
		t.Helper()
		data, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		m, err := nc.Request("$JS.API.STREAM."+verb+"."+stream, data, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(m.Data, resp); err != nil {
			t.Fatal(err)
		}
	}
	ask("INFO", struct{}{}, &info)
	ask("DELETE", struct{}{}, &struct{}{})
	time.Sleep(time.Millisecond) // the server removes the files in the background
	info.Config["first_seq"] = time.Now().UnixMicro()
	var created struct {
		Error any `json:"error"`
	}
	ask("CREATE", info.Config, &created)
	if created.Error != nil {
		t.Fatal(created.Error)
	}
}

// The bucket is lost and there is a new one, closed. Until it opens, nobody may
// have what another believes to hold by the old one.
func TestClaimIsNotTakenInABucketThatIsClosed(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := start(t, s, "a"), start(t, s, "b")
		ga, err := a.Claim("c.e.x").Acquire(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		ga.ReleaseWhenLost()
		time.Sleep(time.Second)
		replace(t, b.nc)
		gb, err := b.Claim("c.e.x").Acquire(within(t, time.Minute), 0)
		if err != nil {
			t.Fatal(err)
		}
		if ga.Valid() {
			t.Error("two grants of one claim are valid at once")
		}
		if gb.Token <= ga.Token {
			t.Errorf("token %d after %d", gb.Token, ga.Token)
		}
		gb.Release(within(t, time.Second))
		a.leave(t)
		b.leave(t)
	})
}

// The same for a PID, whose holder is cut off at the moment.
func TestPIDIsNotTakenInABucketThatIsClosed(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := start(t, s, "a"), start(t, s, "b")
		_, nc := connect(t, s)
		bucket := bucket(t, nc)
		if err := bucket.Open(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		replace(t, b.nc)
		a.link.Cut()
		hold := stateOf(a)
		second, err := lease.Start(within(t, time.Minute), bucket, lease.Config{
			PID: "a", Lease: ttl, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		if hold.Valid(0) {
			t.Error("two processes hold one PID")
		}
		a.link.Heal()
		second.Leave(within(t, time.Second))
		a.Leave(within(t, time.Second))
		b.leave(t)
	})
}

// A process lost its PID to another one, which then crashed. There is nobody else
// to end that one.
func TestPIDIsTakenAgainFromACrashedSuccessor(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a := start(t, s, "a")
		a.link.Cut()
		b := start(t, s, "a")
		b.crash()
		a.link.Heal()
		if _, err := a.Held(within(t, time.Minute)); err != nil {
			t.Errorf("the PID of a crashed process is not taken again: %v", err)
		}
		a.leave(t)
	})
}

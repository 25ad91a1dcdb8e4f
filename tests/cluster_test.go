package tests

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

const bucket = "KV_fab_t_production"

// clusterLease is long enough for a change of the server that leads JetStream,
// which accepts no write for 4 to 8 s.
const clusterLease = 10 * time.Second

// A crowd is five members of a fabric on a cluster that send to each other, elect
// and balance, while something happens to the servers.
type crowd struct {
	t     *testing.T
	nodes []*fabric.Node
	stop  context.CancelFunc
	wg    sync.WaitGroup

	sent, refused atomic.Int64 // messages handed over, and calls that said no
	received      atomic.Int64
	terms         atomic.Int64
	failed        chan error // capacity 64: what is beyond is not needed
}

func newCrowd(t *testing.T, c *natstest.Cluster) *crowd {
	t.Helper()
	cr := &crowd{t: t, failed: make(chan error, 64)}
	cr.nodes = joinMany(t, c.URL(), 5, func(cfg *fabric.Config) { cfg.Lease = clusterLease })
	var ctx context.Context
	ctx, cr.stop = context.WithCancel(t.Context())
	t.Cleanup(func() { cr.stop(); cr.wg.Wait() })
	for i, n := range cr.nodes {
		awaitView(t, n, members(len(cr.nodes)))
		cr.wg.Go(func() { cr.watch(ctx, n) })
		cr.wg.Go(func() { cr.send(ctx, n, number((i+1)%len(cr.nodes))) })
		cr.wg.Go(func() {
			for range n.Messages(ctx) {
				cr.received.Add(1)
			}
		})
		e, err := election.New(n, election.Config{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		cr.wg.Go(func() { cr.elect(ctx, e) })
		g, err := balance.Join(within(t, patience), n, balance.Config{Group: "g", Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		cr.wg.Go(func() { cr.share(ctx, g) })
	}
	return cr
}

func (cr *crowd) fail(err error) {
	select {
	case cr.failed <- err:
	default:
	}
}

// watch fails if a member is reported gone: all are alive, all the time.
func (cr *crowd) watch(ctx context.Context, n *fabric.Node) {
	for c, err := range n.Changes(ctx) {
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			cr.fail(fmt.Errorf("changes of %s: %w", n.PID(), err))
			return
		case c.Kind == fabric.Failed, c.Kind == fabric.Left && c.Member.PID != "guest":
			cr.fail(fmt.Errorf("%s saw: %v of %s, at epoch %d", n.PID(), c.Kind, c.Member.PID, c.Epoch))
		}
	}
}

// send sends some hundred messages a second. That one is refused or has no
// receiver is no failure while a server is away.
func (cr *crowd) send(ctx context.Context, n *fabric.Node, to fabric.PID) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := n.Send(ctx, to, []byte("hello")); err != nil {
			cr.refused.Add(1)
			continue
		}
		cr.sent.Add(1)
	}
}

// elect hands the leadership on every half second.
func (cr *crowd) elect(ctx context.Context, e *election.Election) {
	for ctx.Err() == nil {
		err := e.Lead(ctx, func(term context.Context, _ *election.Term) error {
			cr.terms.Add(1)
			timer := time.NewTimer(500 * time.Millisecond)
			defer timer.Stop()
			select {
			case <-term.Done():
			case <-timer.C:
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			cr.fail(fmt.Errorf("lead: %w", err))
			return
		}
	}
}

// share fails if the group ends.
func (cr *crowd) share(ctx context.Context, g *balance.Group) {
	for _, err := range g.Shares(ctx) {
		if err != nil && ctx.Err() == nil {
			cr.fail(fmt.Errorf("shares: %w", err))
		}
	}
}

// check shows that nobody is deaf: what one member does now, all see, and a guest
// comes and goes.
func (cr *crowd) check(c *natstest.Cluster, round int) {
	cr.t.Helper()
	began := time.Now()
	value := strconv.Itoa(round)
	n := cr.nodes[round%len(cr.nodes)]
	if err := n.SetMeta(within(cr.t, patience), map[string]string{"round": value}); err != nil {
		cr.t.Fatalf("round %d: %v", round, err)
	}
	shown := func(v fabric.View) bool {
		return slices.ContainsFunc(v.Members, func(m fabric.Member) bool { return m.PID == n.PID() && m.Meta["round"] == value })
	}
	for _, o := range cr.nodes {
		awaitView(cr.t, o, shown)
	}
	guest, err := fabric.Join(within(cr.t, patience), fabric.Config{Cluster: "t", PID: "guest", URL: c.URL(), Lease: clusterLease})
	if err != nil {
		cr.t.Fatalf("round %d: a guest: %v", round, err)
	}
	for _, o := range cr.nodes {
		awaitView(cr.t, o, members(len(cr.nodes)+1))
	}
	if err := guest.Leave(within(cr.t, patience)); err != nil {
		cr.t.Errorf("round %d: the guest leaves: %v", round, err)
	}
	for _, o := range cr.nodes {
		awaitView(cr.t, o, members(len(cr.nodes)))
	}
	cr.t.Logf("round %d: all is seen by all after %v; %d messages sent, %d received, %d refused; %d terms",
		round, time.Since(began).Round(time.Millisecond), cr.sent.Load(), cr.received.Load(), cr.refused.Load(), cr.terms.Load())
	select {
	case err := <-cr.failed:
		cr.t.Fatalf("round %d: %v", round, err)
	default:
	}
}

// end fails the test unless work went on.
func (cr *crowd) end() {
	cr.t.Helper()
	cr.stop()
	cr.wg.Wait()
	if cr.terms.Load() < 3 || cr.received.Load() < cr.sent.Load()/2 {
		cr.t.Errorf("%d terms, %d of %d messages received", cr.terms.Load(), cr.received.Load(), cr.sent.Load())
	}
}

// TestServersKilled kills each server of a cluster in turn, under load.
func TestServersKilled(t *testing.T) {
	t.Parallel()
	c := natstest.StartProcesses(t, 3)
	cr := newCrowd(t, c)
	checkReplicas(t, c)
	for i := range 3 {
		victim := i
		if i == 0 {
			victim = c.LeaderOf(bucket) // once, surely, the one that leads the bucket
		}
		c.Kill(victim)
		cr.check(c, i)
		c.Start(victim)
		c.WaitReady()
	}
	cr.check(c, 3)
	cr.end()
}

// TestStepDowns makes the server that leads the bucket step down 20 times, under
// load.
func TestStepDowns(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3)
	cr := newCrowd(t, c)
	for i := range 20 {
		c.StepDown(bucket)
		if i%5 == 4 {
			cr.check(c, i)
		}
	}
	cr.end()
}

// checkReplicas fails unless the bucket has three copies.
func checkReplicas(t *testing.T, c *natstest.Cluster) {
	t.Helper()
	js, err := jetstream.New(c.Connect())
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(within(t, patience), bucket)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.CachedInfo().Config.Replicas; got != 3 {
		t.Errorf("the bucket has %d replicas, want 3 by default on a cluster", got)
	}
}

// quick is how long Join may take to find out that it never can.
const quick = 10 * time.Second

// refusal returns the error of a Join that must fail, and soon.
func refusal(t *testing.T, cfg fabric.Config) error {
	t.Helper()
	cfg.Cluster, cfg.PID = "t", "a"
	began := time.Now()
	n, err := fabric.Join(within(t, patience), cfg)
	if err == nil {
		leave(t, n)
		t.Fatal("Join succeeded")
	}
	if took := time.Since(began); took > quick {
		t.Errorf("Join failed after %v: %v", took, err)
	}
	return err
}

func TestNoJetStream(t *testing.T) {
	url := plain(t)
	if err := refusal(t, fabric.Config{URL: url}); !errors.Is(err, fabric.ErrNoJetStream) {
		t.Errorf("Join = %v, want ErrNoJetStream", err)
	}
	if err := refusal(t, fabric.Config{URL: url, Passive: true}); !errors.Is(err, fabric.ErrNoJetStream) {
		t.Errorf("passive Join = %v, want ErrNoJetStream", err)
	}
}

// TestOldServer has a responder that answers as a server from before API level 1.
func TestOldServer(t *testing.T) {
	url := plain(t)
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Subscribe("$JS.API.INFO", func(m *nats.Msg) {
		_ = m.Respond([]byte(`{"type":"io.nats.jetstream.api.v1.account_info_response","api":{"total":1,"errors":0}}`))
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	err = refusal(t, fabric.Config{URL: url})
	if !errors.Is(err, fabric.ErrOldServer) || !strings.Contains(err.Error(), "level") {
		t.Errorf("Join = %v, want ErrOldServer", err)
	}
}

// plain starts a server without JetStream.
func plain(t *testing.T) string {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	return s.ClientURL()
}

// needs are the subjects that a member must be allowed, each with what it is
// for. Join names the one that is missing.
var needs = map[string][]string{
	"publish": {
		"$JS.API.INFO", "$JS.API.STREAM.INFO." + bucket, "$JS.API.STREAM.CREATE." + bucket, "$JS.API.STREAM.MSG.GET." + bucket,
		"$KV.fab_t_production.b", "$KV.fab_t_production.c.p.a", "$KV.fab_t_production.s.a", "fab.t.production.y.*.a",
	},
	"subscribe": {
		"fab.t.production.u.a.*", "fab.t.production.b.*", "fab.t.production.s.a.*.*", "fab.t.production.r.a.>",
		"fab.t.production.y.open.*", "fab.t.production.y.view-members.*", "fab.t.production.y.suspect.*",
		"fab.t.production.kv.>", "fab.t.production.i.a.>",
	},
}

// TestMissingPermission joins as a user who lacks one of the subjects, in turn.
func TestMissingPermission(t *testing.T) {
	t.Parallel()
	for op, subjects := range needs {
		for _, subject := range subjects {
			t.Run(op+" "+subject, func(t *testing.T) {
				t.Parallel()
				err := refusal(t, fabric.Config{URL: restricted(t, op, subject)})
				p, ok := errors.AsType[*fabric.PermissionError](err)
				if !ok || p.Op != op || !covers(subject, p.Subject) {
					t.Errorf("Join = %v, want a PermissionError for %s %q", err, op, subject)
				}
			})
		}
	}
}

// covers reports whether subject is got, or got is what a pattern stands for.
func covers(pattern, got string) bool {
	if pattern == got {
		return true
	}
	p, g := strings.Split(pattern, "."), strings.Split(got, ".")
	for i, token := range p {
		if token == ">" {
			return len(g) > i
		}
		if i >= len(g) || token != "*" && token != g[i] {
			return false
		}
	}
	return len(p) == len(g)
}

// restricted starts a server whose only user may do everything but op on subject.
func restricted(t *testing.T, op, subject string) string {
	s := natstest.Start(t, func(o *server.Options) {
		p := &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{">"}},
			Subscribe: &server.SubjectPermission{Allow: []string{">"}},
		}
		if op == "publish" {
			p.Publish.Deny = []string{subject}
		} else {
			p.Subscribe.Deny = []string{subject}
		}
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: p}}
	})
	return strings.Replace(s.URL(), "nats://", "nats://u:p@", 1)
}

// TestNeeds: with the subjects of needs alone, and what any member must be allowed
// to send to others, a member joins. So the list is complete.
func TestNeeds(t *testing.T) {
	s := natstest.Start(t, func(o *server.Options) {
		publish := append(slices.Clone(needs["publish"]), "$KV.fab_t_production.c.r.*", "$KV.fab_t_production.v.*")
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: publish},
			Subscribe: &server.SubjectPermission{Allow: needs["subscribe"]},
		}}}
	})
	n := join(t, strings.Replace(s.URL(), "nats://", "nats://u:p@", 1), "a")
	if got := n.View().Members; len(got) != 1 || got[0].PID != "a" {
		t.Errorf("the view has %v, want a", got)
	}
}

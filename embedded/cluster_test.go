package embedded_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// formation bounds what needs an election among servers.
const formation = 60 * time.Second

// memberConfigs are those of three members, each with a store of its own.
func memberConfigs(t *testing.T) []embedded.Config {
	t.Helper()
	dir := t.TempDir()
	routes, clients := freeAddrs(t, 3), freeAddrs(t, 3)
	var cfgs []embedded.Config
	for i := range 3 {
		name := "n" + strconv.Itoa(i+1)
		cfgs = append(cfgs, embedded.Config{
			Name: name, Addr: clients[i], Listen: routes[i], Routes: routes,
			StoreDir: filepath.Join(dir, name), Credentials: filepath.Join(dir, "credentials.json"),
		})
	}
	return cfgs
}

func startAll(t *testing.T, cfgs []embedded.Config) []*embedded.Server {
	t.Helper()
	srvs := make([]*embedded.Server, len(cfgs))
	for i, cfg := range cfgs {
		srvs[i] = start(t, cfg)
	}
	for _, s := range srvs {
		awaitCluster(t, s)
	}
	return srvs
}

func awaitCluster(t *testing.T, s *embedded.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), formation)
	defer cancel()
	if err := s.AwaitCluster(ctx); err != nil {
		t.Fatal(err)
	}
}

// urls are the addresses of all servers, for a client that survives any of them.
func urls(srvs []*embedded.Server) string {
	var all []string
	for _, s := range srvs {
		all = append(all, s.ClientURL())
	}
	return strings.Join(all, ",")
}

func dial(t *testing.T, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, nats.Timeout(20*time.Second), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// replicated makes a bucket on three servers.
func replicated(t *testing.T, nc *nats.Conn) jetstream.KeyValue {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(formation)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "B", Replicas: 3})
		cancel()
		if err == nil {
			return kv
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func put(t *testing.T, kv jetstream.KeyValue, value string) {
	t.Helper()
	deadline := time.Now().Add(formation)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := kv.Put(ctx, "k", []byte(value))
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("put %s: %v", value, err)
		}
	}
}

// TestGracefulStop: a member that stops hands over what it leads; no write waits
// long, and the client finds another by itself.
func TestGracefulStop(t *testing.T) {
	cfgs := memberConfigs(t)
	srvs := startAll(t, cfgs)
	nc := dial(t, urls(srvs))
	kv := replicated(t, nc)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	put(t, kv, "first")

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex // guards the fields below
		last    = time.Now()
		longest time.Duration
		written int
	)
	wg.Go(func() {
		for ctx.Err() == nil {
			// Not kv.Put, which waits for 250 ms when it finds nobody.
			answer, err := nc.Request("$KV.B.k", []byte("x"), 40*time.Millisecond)
			if err == nil && !bytes.Contains(answer.Data, []byte(`"error"`)) {
				mu.Lock()
				written++
				longest = max(longest, time.Since(last))
				last = time.Now()
				mu.Unlock()
			}
		}
	})
	pause := func() time.Duration { // the longest since it was asked last, with the one that goes on
		mu.Lock()
		defer mu.Unlock()
		p := max(longest, time.Since(last))
		longest, last = 0, time.Now()
		return p
	}
	<-time.After(time.Second) // how long writes pause on this machine anyway
	usual := pause()
	var pauses []time.Duration
	for range 3 {
		s, err := js.Stream(testContext(t), "KV_B")
		if err != nil {
			t.Fatal(err)
		}
		leads := slices.IndexFunc(cfgs, func(c embedded.Config) bool { return c.Name == s.CachedInfo().Cluster.Leader })
		if leads < 0 {
			t.Fatalf("leader is %q", s.CachedInfo().Cluster.Leader)
		}
		began := time.Now()
		if err := srvs[leads].Restart(testContext(t)); err != nil {
			t.Fatal(err)
		}
		awaitCluster(t, srvs[leads])
		awaitCurrent(t, js)
		pauses = append(pauses, pause())
		t.Logf("%s, which led, restarted in %v; the longest pause between two writes was %v",
			cfgs[leads].Name, time.Since(began).Round(time.Millisecond), pauses[len(pauses)-1].Round(time.Millisecond))
	}
	stop()
	wg.Wait()
	// Without a hand-over it would be an election, 4 s at least; a busy machine may
	// stretch one of them, and on one where writes pause anyway, all.
	if limit := 200*time.Millisecond + 10*usual; slices.Min(pauses) > limit && !natstest.Race {
		t.Errorf("writes paused for %v at least, want at most %v: they do for %v anyway", slices.Min(pauses), limit, usual)
	}
	if limit, median := 3500*time.Millisecond, slices.Sorted(slices.Values(pauses))[1]; median > limit {
		t.Errorf("writes paused for %v, want at most %v but once", pauses, limit)
	}
	if written < 100 {
		t.Errorf("%d writes, want at least 100", written)
	}
}

// awaitCurrent waits until every replica of the bucket has what the leader has.
func awaitCurrent(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	deadline := time.Now().Add(formation)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		s, err := js.Stream(ctx, "KV_B")
		cancel()
		if err == nil && s.CachedInfo().Cluster.Leader != "" && len(s.CachedInfo().Cluster.Replicas) == 2 &&
			!slices.ContainsFunc(s.CachedInfo().Cluster.Replicas, func(p *jetstream.PeerInfo) bool { return !p.Current }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("replicas are not current: %v", err)
		}
		<-tick.C
	}
}

// TestRestartInsideTheProcess: what is connected inside and outside finds the new
// server by itself, where the old one was.
func TestRestartInsideTheProcess(t *testing.T) {
	srv := start(t, embedded.Config{StoreDir: t.TempDir()})
	inside, err := srv.Connect(nats.MaxReconnects(-1), nats.ReconnectWait(5*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	outside := dial(t, srv.ClientURL())
	if _, err := bucket(t, inside).Put(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	url := srv.ClientURL()
	if err := srv.Restart(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if srv.ClientURL() != url {
		t.Errorf("ClientURL() = %q after Restart, was %q", srv.ClientURL(), url)
	}
	for what, nc := range map[string]*nats.Conn{"inside": inside, "outside": outside} {
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(20 * time.Second)
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			kv, err := js.KeyValue(ctx, "B")
			if err == nil {
				var e jetstream.KeyValueEntry
				if e, err = kv.Get(ctx, "k"); err == nil && string(e.Value()) != "v" {
					t.Errorf("%s: Get(k) = %q, want v", what, e.Value())
				}
			}
			cancel()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := srv.Restart(testContext(t)); !errors.Is(err, embedded.ErrClosed) {
		t.Errorf("Restart after Shutdown: %v, want %v", err, embedded.ErrClosed)
	}
}

// TestRestartWhileItsAddressIsHeld: somebody else has the server's address for a moment,
// as a process has that is being started.
func TestRestartWhileItsAddressIsHeld(t *testing.T) {
	t.Parallel()
	srv := start(t, embedded.Config{})
	addr := strings.TrimPrefix(srv.ClientURL(), "nats://")
	addr = addr[strings.LastIndexByte(addr, '@')+1:]
	restarted := make(chan error, 1)
	for held := false; !held; {
		go func() { restarted <- srv.Restart(testContext(t)) }()
		for over := false; !over; {
			select {
			case err := <-restarted: // it was too fast for us: once more
				if err != nil {
					t.Fatalf("Restart: %v", err)
				}
				over = true
			default:
			}
			if l, err := net.Listen("tcp", addr); err == nil {
				time.Sleep(300 * time.Millisecond)
				l.Close()
				held, over = true, true
			}
		}
	}
	if err := <-restarted; err != nil {
		t.Errorf("Restart: %v", err)
	}
	connect(t, srv)
}

// TestStoreOfAnotherKind: a member would delete the streams of a server by itself.
// They survive the refusal.
func TestStoreOfAnotherKind(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a[b]", "c[")
	alone := embedded.Config{StoreDir: dir}
	srv := start(t, alone)
	if _, err := bucket(t, connect(t, srv)).Put(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfgs := memberConfigs(t)
	member := cfgs[0]
	member.StoreDir = dir
	_, err := embedded.Start(testContext(t), member)
	if !errors.Is(err, embedded.ErrStoreMode) || !strings.Contains(err.Error(), "back them up") {
		t.Errorf("a member on the store of a server by itself: %v, want ErrStoreMode with a way out", err)
	}
	srv = start(t, alone)
	if e, err := bucket(t, connect(t, srv)).Get(t.Context(), "k"); err != nil || string(e.Value()) != "v" {
		t.Errorf("after the refusal: %v, %v, want v", e, err)
	}

	srvs := startAll(t, cfgs)
	put(t, replicated(t, dial(t, urls(srvs))), "v")
	if err := srvs[0].Shutdown(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.Start(testContext(t), embedded.Config{StoreDir: cfgs[0].StoreDir}); !errors.Is(err, embedded.ErrStoreMode) {
		t.Errorf("a server by itself on a member's store: %v, want ErrStoreMode", err)
	}
}

// TestStoreOfAMemberWithoutStreams: what a server by itself made there, the cluster
// would delete.
func TestStoreOfAMemberWithoutStreams(t *testing.T) {
	t.Parallel()
	cfgs := memberConfigs(t)
	for _, srv := range startAll(t, cfgs) {
		if err := srv.Shutdown(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	srv, err := embedded.Start(testContext(t), embedded.Config{StoreDir: cfgs[0].StoreDir})
	if !errors.Is(err, embedded.ErrStoreMode) {
		t.Errorf("a server by itself on a member's store without streams: %v, want ErrStoreMode", err)
	}
	if err == nil {
		srv.Shutdown(testContext(t))
	}
	startAll(t, cfgs)
}

// TestRemovePeer: of a cluster of three, one is gone for good.
func TestRemovePeer(t *testing.T) {
	t.Parallel()
	cfgs := memberConfigs(t)
	srvs := startAll(t, cfgs)
	kv := replicated(t, dial(t, urls(srvs)))
	put(t, kv, "before")
	if _, err := embedded.SystemUser(filepath.Join(t.TempDir(), "none")); !errors.Is(err, embedded.ErrConfig) {
		t.Errorf("no credentials: %v, want ErrConfig", err)
	}
	system, err := embedded.SystemUser(cfgs[0].Credentials)
	if err != nil {
		t.Fatal(err)
	}
	outside, err := nats.Connect(srvs[1].Addr(), system)
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	if err := embedded.RemovePeer(testContext(t), outside, "nobody"); err == nil {
		t.Error("removed a member that there never was")
	}
	short, cancel := context.WithTimeout(testContext(t), 3*time.Second) // nobody answers a client
	defer cancel()
	if err := embedded.RemovePeer(short, dial(t, srvs[0].ClientURL()), cfgs[2].Name); err == nil {
		t.Error("a client removed a member")
	}
	if err := srvs[2].Shutdown(testContext(t)); err != nil {
		t.Fatal(err)
	}
	inside := connect(t, srvs[0], nats.UserInfo("system", ""))
	if err := embedded.RemovePeer(testContext(t), inside, cfgs[2].Name); err != nil {
		t.Fatal(err)
	}
	put(t, kv, "after")
}

// TestLeaf: a leaf node passes on what its clients say, JetStream included, and
// finds its hub again.
func TestLeaf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addrs := freeAddrs(t, 1)
	creds := filepath.Join(dir, "credentials.json")
	hub := start(t, embedded.Config{StoreDir: filepath.Join(dir, "hub"), Leafs: addrs[0], Credentials: creds})
	leaf := start(t, embedded.Config{Hub: addrs, Credentials: creds})
	awaitCluster(t, leaf)
	if hub.Domain() != "" || leaf.Domain() != "hub" {
		t.Errorf("domains %q and %q, want none and hub", hub.Domain(), leaf.Domain())
	}
	js, err := jetstream.NewWithDomain(connect(t, leaf), leaf.Domain())
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateKeyValue(testContext(t), jetstream.KeyValueConfig{Bucket: "B"})
	if err != nil {
		t.Fatal(err)
	}
	put(t, kv, "v")
	if e, err := bucket(t, connect(t, hub)).Get(t.Context(), "k"); err != nil || string(e.Value()) != "v" {
		t.Errorf("Get(k) at the hub = %v, %v, want v", e, err)
	}
	if err := hub.Restart(testContext(t)); err != nil {
		t.Fatal(err)
	}
	put(t, kv, "w")

	other := start(t, embedded.Config{Hub: addrs, Domain: "x"}) // with credentials of its own
	letIn := func(text string) bool { return strings.Contains(text, "let this leaf node in") }
	if err := notFormed(t, other, time.Second, letIn); err != nil {
		t.Errorf("a leaf node with other credentials: %v, want ErrNotFormed", err)
	}
}

func TestBadClusterConfig(t *testing.T) {
	three := []string{"127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"}
	for name, cfg := range map[string]embedded.Config{
		"two members":          {Name: "a", Listen: three[0], Routes: three[:2]},
		"four members":         {Name: "a", Listen: three[0], Routes: append(slices.Clone(three), "127.0.0.1:7004")},
		"no name":              {Listen: three[0], Routes: three},
		"no listen":            {Name: "a", Routes: three},
		"listen alone":         {Name: "a", Listen: three[0]},
		"a random port":        {Name: "a", Listen: "127.0.0.1:0", Routes: three},
		"a route twice":        {Name: "a", Listen: three[0], Routes: []string{three[0], three[1], three[1]}},
		"a route without port": {Name: "a", Listen: three[0], Routes: []string{three[0], three[1], "127.0.0.1"}},
		"member and leaf":      {Name: "a", Listen: three[0], Routes: three, Hub: three},
		"leaf of a leaf":       {Hub: three, Leafs: three[0]},
		"a hub without port":   {Hub: []string{"h"}},
	} {
		srv, err := embedded.Start(testContext(t), cfg)
		if err == nil {
			srv.Shutdown(t.Context())
		}
		if !errors.Is(err, embedded.ErrConfig) {
			t.Errorf("%s: %v, want ErrConfig", name, err)
		}
	}
	for _, addr := range []string{"0.0.0.0:7001", "192.0.2.1:7001"} {
		_, err := embedded.Start(testContext(t), embedded.Config{Name: "a", Listen: addr, Routes: three})
		if !errors.Is(err, embedded.ErrUnprotected) || !strings.Contains(err.Error(), "cluster") {
			t.Errorf("cluster on %s without TLS: %v, want ErrUnprotected", addr, err)
		}
	}
}

package embedded_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, cfg embedded.Config) *embedded.Server {
	t.Helper()
	ctx := testContext(t)
	srv, err := embedded.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := testContext(t) // the other has been used up by a long test
		if err := srv.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return srv
}

func bucket(t *testing.T, nc *nats.Conn) jetstream.KeyValue {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateOrUpdateKeyValue(testContext(t), jetstream.KeyValueConfig{Bucket: "B"})
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func connect(t *testing.T, srv *embedded.Server, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := srv.Connect(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestZeroConfig(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // where the private store goes
	srv := start(t, embedded.Config{})
	if got, want := srv.ClientURL(), "nats://fabric:"; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "@"+srv.Addr()) {
		t.Errorf("ClientURL() = %q, want %s, a password and %s", got, want, srv.Addr())
	}
	outside, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	if _, err := bucket(t, connect(t, srv)).Put(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if e, err := bucket(t, outside).Get(t.Context(), "k"); err != nil || string(e.Value()) != "v" {
		t.Errorf("Get(k) over TCP = %v, %v, want v", e, err)
	}
	if stores, err := os.ReadDir(os.TempDir()); err != nil || len(stores) != 1 {
		t.Fatalf("temporary directory holds %v, %v, want one store", stores, err)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if stores, err := os.ReadDir(os.TempDir()); err != nil || len(stores) != 0 {
		t.Errorf("after Shutdown the temporary directory holds %v, %v, want nothing", stores, err)
	}
}

func TestInProcessOnly(t *testing.T) {
	srv := start(t, embedded.Config{Addr: embedded.None, Name: "n1"})
	if got := srv.ClientURL(); got != "" {
		t.Errorf("ClientURL() = %q, want none", got)
	}
	nc, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if got := nc.ConnectedServerName(); got != "n1" {
		t.Errorf("server name = %q, want n1", got)
	}
}

func TestDataSurvives(t *testing.T) {
	cfg := embedded.Config{StoreDir: filepath.Join(t.TempDir(), "a", "b")}
	srv := start(t, cfg)
	if _, err := bucket(t, connect(t, srv)).Put(t.Context(), "k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	srv = start(t, cfg)
	e, err := bucket(t, connect(t, srv)).Get(t.Context(), "k")
	if err != nil || string(e.Value()) != "v" {
		t.Errorf("Get(k) from the second server = %v, %v, want v", e, err)
	}
}

func TestOneServerPerStore(t *testing.T) {
	cfg := embedded.Config{Addr: embedded.None, StoreDir: t.TempDir()}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards the two below
		won  []*embedded.Server
		errs []error
	)
	for range 5 {
		wg.Go(func() {
			srv, err := embedded.Start(t.Context(), cfg)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			won = append(won, srv)
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d servers on one directory, want 1 (%v)", len(won), errs)
	}
	for _, err := range errs {
		if !errors.Is(err, embedded.ErrStoreInUse) {
			t.Errorf("Start on a locked directory: %v, want %v", err, embedded.ErrStoreInUse)
		}
	}
	if err := won[0].Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	start(t, cfg)
}

func TestBadInput(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	takenPort := taken.Addr().(*net.TCPAddr).Port
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	users := func(o *server.Options) { o.Username, o.Password = "u", "p" }

	for _, tt := range []struct {
		name string
		cfg  embedded.Config
		want error
	}{
		{"no port", embedded.Config{Addr: "127.0.0.1"}, embedded.ErrConfig},
		{"url", embedded.Config{Addr: "nats://127.0.0.1:4222"}, embedded.ErrConfig},
		{"negative port", embedded.Config{Addr: "127.0.0.1:-1"}, embedded.ErrConfig},
		{"port too large", embedded.Config{Addr: "127.0.0.1:65536"}, embedded.ErrConfig},
		{"port by name", embedded.Config{Addr: "127.0.0.1:http"}, embedded.ErrConfig},
		{"no such host", embedded.Config{Addr: "no such host:0"}, embedded.ErrConfig},
		{"name with a space", embedded.Config{Name: "a b"}, embedded.ErrConfig},
		{"port in use", embedded.Config{Addr: taken.Addr().String()}, embedded.ErrAddrInUse},
		{"cluster port in use", embedded.Config{Name: "a", Options: func(o *server.Options) {
			o.Cluster = server.ClusterOpts{Name: "c", Port: takenPort}
			o.Routes = server.RoutesFromStr("nats://127.0.0.1:" + strconv.Itoa(takenPort))
		}}, embedded.ErrAddrInUse},
		{"monitoring port in use", embedded.Config{Options: func(o *server.Options) { o.HTTPPort = takenPort }}, embedded.ErrStart},
		{"not this machine's", embedded.Config{Addr: "192.0.2.1:0", Insecure: true}, embedded.ErrStart},
		{"store is a file", embedded.Config{StoreDir: file}, embedded.ErrStore},
		{"store below a file", embedded.Config{StoreDir: filepath.Join(file, "x")}, embedded.ErrStore},
		{"all interfaces", embedded.Config{Addr: ":0"}, embedded.ErrUnprotected},
		{"all IPv6 interfaces", embedded.Config{Addr: "[::]:0"}, embedded.ErrUnprotected},
		{"one interface", embedded.Config{Addr: "192.0.2.1:0"}, embedded.ErrUnprotected},
		{"no TLS", embedded.Config{Addr: ":0", Options: users}, embedded.ErrUnprotected},
		{"anonymous user", embedded.Config{Addr: ":0", Options: func(o *server.Options) {
			o.Users = []*server.User{{Username: "u", Password: "p"}}
			o.NoAuthUser = "u"
		}}, embedded.ErrUnprotected},
		{"open by Options", embedded.Config{Options: func(o *server.Options) { o.Host = "0.0.0.0" }}, embedded.ErrUnprotected},
		{"open cluster", embedded.Config{Options: func(o *server.Options) {
			users(o)
			o.Cluster = server.ClusterOpts{Name: "c", Host: "0.0.0.0", Port: -1}
		}}, embedded.ErrUnprotected},
		{"open monitoring", embedded.Config{Options: func(o *server.Options) { o.HTTPHost, o.HTTPPort = "0.0.0.0", -1 }}, embedded.ErrUnprotected},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			srv, err := embedded.Start(testContext(t), tt.cfg)
			if err == nil {
				srv.Shutdown(t.Context())
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("Start(%+v) = %v, want %v", tt.cfg, err, tt.want)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("Start failed after %v, want at once", took)
			}
		})
	}
}

// TestFailedStartLeavesNothing: the directory is free and the temporary one gone.
func TestFailedStartLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := embedded.Start(t.Context(), embedded.Config{Addr: taken.Addr().String()}); err == nil {
		t.Fatal("started on a port in use")
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) != 0 {
		t.Errorf("a failed start left %v, %v", left, err)
	}
	dir := filepath.Join(t.TempDir(), "store")
	if _, err := embedded.Start(t.Context(), embedded.Config{Addr: taken.Addr().String(), StoreDir: dir}); err == nil {
		t.Fatal("started on a port in use")
	}
	start(t, embedded.Config{Addr: embedded.None, StoreDir: dir})
}

func TestBeyondLoopback(t *testing.T) {
	srv := start(t, embedded.Config{Addr: ":0", Insecure: true, Options: func(o *server.Options) {
		o.Username, o.Password = "u", "p"
	}})
	began := time.Now()
	if _, err := nats.Connect(srv.ClientURL()); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("connect without a password: %v, want %v", err, nats.ErrAuthorization)
	}
	if _, err := srv.Connect(); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("connect in process without a password: %v, want %v", err, nats.ErrAuthorization)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("refused after %v, want at once", took)
	}
	nc, err := nats.Connect(srv.ClientURL(), nats.UserInfo("u", "p"))
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	connect(t, srv, nats.UserInfo("u", "p"))
}

func TestTooManyConnections(t *testing.T) {
	srv := start(t, embedded.Config{Options: func(o *server.Options) { o.MaxConn = 1 }})
	connect(t, srv)
	began := time.Now()
	if _, err := srv.Connect(); err == nil || !strings.Contains(err.Error(), "maximum connections exceeded") {
		t.Errorf("second of one connection: %v, want the server's refusal", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("refused after %v, want at once", took)
	}
}

func TestOptionsHaveTheLastWord(t *testing.T) {
	var seen server.Options
	srv := start(t, embedded.Config{Name: "a", Options: func(o *server.Options) {
		seen = *o.Clone()
		o.ServerName = "b"
		o.MaxPayload = 1234
		o.NoSigs = false // to no avail
	}})
	if !seen.SyncAlways || !seen.JetStream || seen.ServerName != "a" {
		t.Errorf("Options saw SyncAlways %v, JetStream %v, name %q", seen.SyncAlways, seen.JetStream, seen.ServerName)
	}
	nc := connect(t, srv)
	if nc.ConnectedServerName() != "b" || nc.MaxPayload() != 1234 {
		t.Errorf("server %q takes %d bytes, want b and 1234", nc.ConnectedServerName(), nc.MaxPayload())
	}
}

func TestShutdown(t *testing.T) {
	srv := start(t, embedded.Config{})
	nc := connect(t, srv, nats.NoReconnect())
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := srv.Shutdown(ended); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown with an ended context: %v, want %v", err, context.Canceled)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := srv.Shutdown(t.Context()); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
	wg.Wait()
	if _, err := srv.Connect(); !errors.Is(err, embedded.ErrClosed) {
		t.Errorf("Connect after Shutdown: %v, want %v", err, embedded.ErrClosed)
	}
	if _, err := srv.InProcessConn(); !errors.Is(err, embedded.ErrClosed) {
		t.Errorf("InProcessConn after Shutdown: %v, want %v", err, embedded.ErrClosed)
	}
	if err := nc.Publish("x", nil); err == nil {
		err = nc.FlushTimeout(time.Second)
		if err == nil {
			t.Error("a connection outlived the server")
		}
	}
	if c, err := net.Dial("tcp", srv.Addr()); err == nil {
		c.Close()
		t.Error("the port outlived the server")
	}
}

func TestStartWithEndedContext(t *testing.T) {
	cause := errors.New("no time")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	_, err := embedded.Start(ctx, embedded.Config{})
	if !errors.Is(err, embedded.ErrStart) || !errors.Is(err, cause) {
		t.Errorf("Start with an ended context: %v, want %v and %v", err, embedded.ErrStart, cause)
	}
}

// TestLeavesNoGoroutine runs in a bubble, which does not forgive any.
func TestLeavesNoGoroutine(t *testing.T) {
	dir := t.TempDir()
	natstest.Bubble(t, func(t *testing.T, _ *natstest.Server) {
		for range 3 {
			srv, err := embedded.Start(t.Context(), embedded.Config{Addr: embedded.None, StoreDir: dir})
			if err != nil {
				t.Fatal(err)
			}
			nc := connect(t, srv)
			if _, err := bucket(t, nc).Put(t.Context(), "k", nil); err != nil {
				t.Fatal(err)
			}
			nc.Close()
			if err := srv.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestLogger(t *testing.T) {
	for _, tt := range []struct {
		level slog.Level
		want  bool
	}{{slog.LevelDebug, true}, {slog.LevelInfo, false}} {
		var out bytes.Buffer // slog's handlers write one record at a time
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: tt.level}))
		srv := start(t, embedded.Config{Logger: log})
		connect(t, srv)
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "Server is ready") {
			t.Errorf("log at %v says nothing of the start:\n%s", tt.level, out.String())
		}
		if got := strings.Contains(out.String(), "level=DEBUG"); got != tt.want {
			t.Errorf("debug lines in a log at %v: %v, want %v", tt.level, got, tt.want)
		}
	}
}

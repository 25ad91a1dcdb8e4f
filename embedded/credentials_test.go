package embedded_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// credentials reads the file that a server made.
func credentials(t *testing.T, path string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]string
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRandomCredentials(t *testing.T) {
	dir := t.TempDir()
	cfg := embedded.Config{StoreDir: dir}
	srv := start(t, cfg)
	path := filepath.Join(dir, "credentials.json")
	if st, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && st.Mode().Perm() != 0o600 {
		t.Fatalf("%s: %v, %v, want mode 0600", path, st, err)
	}
	c := credentials(t, path)
	for _, tt := range []struct {
		what string
		opts []nats.Option
		want error
	}{
		{"nothing", nil, nats.ErrAuthorization},
		{"a wrong password", []nats.Option{nats.UserInfo(c["user"], "x")}, nats.ErrAuthorization},
		{"no password", []nats.Option{nats.UserInfo(c["user"], "")}, nats.ErrAuthorization},
		{"a token", []nats.Option{nats.Token(c["password"])}, nats.ErrAuthorization},
		{"system without its password", []nats.Option{nats.UserInfo("system", "")}, nats.ErrAuthorization},
		{"system with a client's password", []nats.Option{nats.UserInfo("system", c["password"])}, nats.ErrAuthorization},
		{"the servers' password", []nats.Option{nats.UserInfo("cluster", c["cluster_password"])}, nats.ErrAuthorization},
		{"the credentials", []nats.Option{nats.UserInfo(c["user"], c["password"])}, nil},
		{"system", []nats.Option{nats.UserInfo("system", c["system_password"])}, nil},
	} {
		nc, err := nats.Connect(srv.Addr(), tt.opts...)
		if !errors.Is(err, tt.want) {
			t.Errorf("connect with %s: %v, want %v", tt.what, err, tt.want)
		}
		if err == nil {
			nc.Close()
		}
	}
	if nc, err := nats.Connect(srv.ClientURL()); err != nil {
		t.Errorf("connect to ClientURL: %v", err)
	} else {
		nc.Close()
	}
	connect(t, srv) // inside the process nobody is asked

	// The next server on the store knows them, so that clients come back.
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := start(t, cfg)
	if got := credentials(t, path); got["password"] != c["password"] {
		t.Error("the second server has another password")
	}
	if other := start(t, embedded.Config{StoreDir: t.TempDir()}); other.ClientURL() == "" || strings.Contains(again.ClientURL(), mustPassword(t, other.ClientURL())) {
		t.Error("two stores have one password")
	}
	for _, shown := range []string{fmt.Sprint(again.Addr())} {
		if strings.Contains(shown, c["password"]) {
			t.Errorf("%q shows the password", shown)
		}
	}
}

func mustPassword(t *testing.T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := u.User.Password()
	if !ok || len(p) < 26 {
		t.Fatalf("%s has a password of %d characters, want 26", u.Redacted(), len(p))
	}
	return p
}

func TestBadCredentials(t *testing.T) {
	const canary = "hunter2canary"
	for name, tt := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"readable by others": {`{"user":"u","password":"` + canary + `","system_password":"x","cluster_password":"y"}`, 0o640, "others may read"},
		"no JSON":            {`{"password":"` + canary, 0o600, "lacks"},
		"no password":        {`{"user":"u","system_password":"` + canary + `","cluster_password":"y"}`, 0o600, "lacks"},
		"the system's user":  {`{"user":"system","password":"` + canary + `","system_password":"x","cluster_password":"y"}`, 0o600, "lacks"},
	} {
		if runtime.GOOS == "windows" && tt.mode != 0o600 {
			continue // has no such modes
		}
		path := filepath.Join(t.TempDir(), "c.json")
		if err := os.WriteFile(path, []byte(tt.text), tt.mode); err != nil {
			t.Fatal(err)
		}
		_, err := embedded.Start(testContext(t), embedded.Config{Credentials: path})
		if !errors.Is(err, embedded.ErrConfig) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want ErrConfig that says %q", name, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("%s: the error shows the password: %v", name, err)
		}
	}
}

func TestInsecureAsksNobody(t *testing.T) {
	srv := start(t, embedded.Config{Addr: ":0", Insecure: true})
	nc, err := nats.Connect(srv.Addr())
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	if got, want := srv.ClientURL(), "nats://"+srv.Addr(); got != want {
		t.Errorf("ClientURL() = %q, want %q", got, want)
	}
}

// TestNothingElseListens: clients' is the only port of a server that was asked for
// nothing else, and there are bounds on what clients may take.
func TestNothingElseListens(t *testing.T) {
	var o server.Options
	start(t, embedded.Config{Options: func(opts *server.Options) { o = *opts.Clone() }})
	for what, port := range map[string]int{
		"monitoring": o.HTTPPort, "https monitoring": o.HTTPSPort, "profiling": o.ProfPort, "websocket": o.Websocket.Port,
		"mqtt": o.MQTT.Port, "leaf nodes": o.LeafNode.Port, "cluster": o.Cluster.Port, "gateway": o.Gateway.Port,
	} {
		if port != 0 {
			t.Errorf("%s has port %d", what, port)
		}
	}
	for what, limit := range map[string]int64{
		"connections": int64(o.MaxConn), "subscriptions": int64(o.MaxSubs), "pending bytes": o.MaxPending,
		"memory": o.JetStreamMaxMemory, "store": o.JetStreamMaxStore,
	} {
		if limit <= 0 {
			t.Errorf("no limit of %s", what)
		}
	}
}

// freeAddrs returns addresses of loopback on which nobody listens, each once.
func freeAddrs(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		port, err := natstest.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	}
	return addrs
}

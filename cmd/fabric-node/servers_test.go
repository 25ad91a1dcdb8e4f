package main

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

const patience = 20 * time.Second

// natsServer starts a plain NATS server: what this program meets outside.
func natsServer(t *testing.T, opts *server.Options) string {
	t.Helper()
	opts.Host, opts.Port, opts.NoLog, opts.NoSigs = "127.0.0.1", server.RANDOM_PORT, true, true
	opts.StoreDir = t.TempDir()
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server did not start")
	}
	return s.Addr().String()
}

// listener accepts connections and hands them to serve, until the test ends.
func listener(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go serve(c)
		}
	}()
	return l.Addr().String()
}

// output takes what the program writes, also from several goroutines, as a file does.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func runCLI(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs output
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// What is on the port may be something else, or the wrong kind of NATS: exit code
// 3, soon, and no password in the text.
func TestUnusableServers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		start func(t *testing.T) string
		user  string
		want  string
	}{
		{"no JetStream", func(t *testing.T) string { return natsServer(t, &server.Options{}) }, "", "nats-server -js"},
		{"wrong password", func(t *testing.T) string {
			return natsServer(t, &server.Options{JetStream: true, Username: "u", Password: "right"})
		}, "u:hunter2@", "uthorization"},
		{"http", func(t *testing.T) string {
			return listener(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n"); c.Close() })
		}, "u:hunter2@", "cannot connect"},
		{"silent", func(t *testing.T) string { return listener(t, func(net.Conn) {}) }, "u:hunter2@", "takes connections there and does not answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr := tt.start(t)
			for _, command := range []string{"run", "members"} {
				begin := time.Now()
				code, stdout, stderr := runCLI(t, command, "--timeout", "1s", "-o", "json", "-s", "nats://"+tt.user+addr)
				if code != exitConnect || !strings.Contains(stderr, tt.want) || !strings.Contains(stdout, `"code":3`) {
					t.Errorf("%s: exit code %d, want %d\nstdout %s\nstderr %s, want %q in it", command, code, exitConnect, stdout, stderr, tt.want)
				}
				if strings.Contains(stdout+stderr, "hunter2") {
					t.Errorf("%s: the password is shown\nstdout %s\nstderr %s", command, stdout, stderr)
				}
				if took := time.Since(begin); took > 8*time.Second {
					t.Errorf("%s took %v with a --timeout of 1s", command, took)
				}
			}
		})
	}
}

// Servers without a majority let clients in and answer nothing: a member that waits for
// them says so.
func TestSlowJoinIsTold(t *testing.T) {
	t.Parallel()
	at := "nats://" + natsServer(t, &server.Options{})
	nc, err := nats.Connect(at)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SubscribeSync("$JS.API.>")
	nc.Flush()
	code, _, stderr := runCLI(t, "run", "--timeout", "500ms", "--ttl", "1s", "-s", at)
	if code != exitTimeout || !strings.Contains(stderr, "connected, but not in fabric/production yet: trying for 3.5s in all") {
		t.Errorf("exit code %d, want %d\n%s", code, exitTimeout, stderr)
	}
}

// Credentials come from the URL, from NATS_*, or from a context that is named.
func TestCredentialsReachTheServer(t *testing.T) {
	addr := natsServer(t, &server.Options{JetStream: true, Username: "u", Password: "right"})
	for name, setup := range map[string]func(t *testing.T) []string{
		"url": func(*testing.T) []string { return []string{"-s", "nats://u:right@" + addr} },
		"environment": func(t *testing.T) []string {
			t.Setenv("NATS_USER", "u")
			t.Setenv("NATS_PASSWORD", "right")
			t.Setenv("NATS_URL", "nats://"+addr)
			return nil
		},
		"context": func(t *testing.T) []string {
			writeContext(t, "prod", `{"url":"nats://`+addr+`","user":"u","password":"right"}`)
			return []string{"--context", "prod"}
		},
		"NATS_CONTEXT": func(t *testing.T) []string {
			writeContext(t, "prod", `{"url":"nats://`+addr+`","user":"u","password":"right"}`)
			t.Setenv("NATS_CONTEXT", "prod")
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			args := append(setup(t), "members", "-o", "ndjson")
			code, stdout, stderr := runCLI(t, args...)
			if want := `{"cluster":"fabric","env":"production","epoch":0,"members":[]}` + "\n"; code != exitOK || stdout != want {
				t.Errorf("exit code %d\nstdout %s\nstderr %s", code, stdout, stderr)
			}
		})
	}
}

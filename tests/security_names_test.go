package tests

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// tricky are names that would be more than a name in a subject or a key.
var tricky = []string{
	"*", ">", "a.b", ".", ".a", "a.", "a..b", "a.*", "a.>", "*.a", " ", "a b", "a\tb", "a\r\nPUB x 0", "a\x00b", "é", "a\u200bb",
	"_", "_INBOX", "-", "$JS", "$KV", "{{name()}}", "a/b", "a\\b", "a:b", "a@b", "a,b", `a"b`, strings.Repeat("x", 65), "ａ",
}

// TestNames: no name that is more than a name gets past any entry; a name that is
// one does.
func TestNames(t *testing.T) {
	s := natstest.Start(t)
	n := join(t, s.URL(), "a")
	ctx := within(t, patience)
	entries := map[string]func(name string) error{
		"cluster": func(name string) error { return joining(ctx, fabric.Config{Cluster: name, URL: s.URL()}) },
		"env":     func(name string) error { return joining(ctx, fabric.Config{Cluster: "t", Env: name, URL: s.URL()}) },
		"pid": func(name string) error {
			return joining(ctx, fabric.Config{Cluster: "t", PID: fabric.PID(name), URL: s.URL()})
		},
		"domain": func(name string) error {
			_, err := fabric.Config{Cluster: "t", PID: "x", Domain: name}.Permissions(fabric.Scope{Role: fabric.RoleMember})
			return err
		},
		"permissions": func(name string) error {
			_, err := fabric.Config{Cluster: "t", PID: fabric.PID(name)}.Permissions(fabric.Scope{Role: fabric.RoleMember})
			return err
		},
		"only group": func(name string) error {
			_, err := fabric.Config{Cluster: "t", PID: "x"}.Permissions(fabric.Scope{Role: fabric.RoleMember, Groups: []string{"a", name}})
			return err
		},
		"check": func(name string) error { return fabric.CheckPID(fabric.PID(name)) },
		"send": func(name string) error {
			if err := n.Send(ctx, fabric.PID(name), nil); !errors.Is(err, fabric.ErrNoPeer) && !errors.Is(err, fabric.ErrUnreachable) {
				return err
			}
			return nil
		},
		"request": func(name string) error {
			if _, err := n.Request(ctx, fabric.PID(name), nil); !errors.Is(err, fabric.ErrNoPeer) && !errors.Is(err, fabric.ErrUnreachable) {
				return err
			}
			return nil
		},
		"election": func(name string) error { _, err := election.New(n, election.Config{Name: name}); return err },
		"group": func(name string) error {
			g, err := balance.Join(ctx, n, balance.Config{Group: name})
			if err == nil {
				err = g.Leave(ctx)
			}
			return err
		},
	}
	// Where a * stands for all, or everyone, and is taken to be that.
	all := map[string]bool{"only group": true, "send": true}
	for entry, enter := range entries {
		for _, name := range tricky {
			if name == "*" && all[entry] {
				continue
			}
			err := enter(name)
			if e, ok := errors.AsType[*fabric.NameError](err); !ok || e.Name != name {
				t.Errorf("%s %q: %v, want a *NameError", entry, name, err)
			}
		}
		// A PID that has just left may swallow a request: each entry has its own.
		name := strings.ReplaceAll(entry, " ", "-") + "-1"
		if err := enter(name); err != nil {
			t.Errorf("%s %s: %v", entry, name, err)
		}
	}
	t.Logf("%d names were refused at %d entries", len(tricky), len(entries))
}

func joining(ctx context.Context, cfg fabric.Config) error {
	n, err := fabric.Join(ctx, cfg)
	if err == nil {
		err = n.Leave(ctx)
	}
	return err
}

// abuses are what a stranger writes on a socket.
var abuses = map[string]string{
	"http":                "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
	"tls":                 "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
	"publish before":      "PUB fab.t.production.b.a 5\r\nhello\r\n",
	"subscribe before":    "SUB > 1\r\n",
	"a long line":         "CONNECT {" + strings.Repeat(" ", 64<<10) + "}\r\n",
	"no JSON":             "CONNECT {\"user\":\r\nPING\r\n",
	"no password":         "CONNECT {\"verbose\":false,\"user\":\"u\"}\r\nPING\r\n",
	"a wrong password":    "CONNECT {\"user\":\"u\",\"pass\":\"wrong\"}\r\nPING\r\n",
	"a huge publish":      "CONNECT {\"user\":\"u\",\"pass\":\"p\"}\r\nPUB x 999999999\r\n",
	"a negative publish":  "CONNECT {\"user\":\"u\",\"pass\":\"p\"}\r\nPUB x -1\r\n\r\n",
	"a bad header length": "CONNECT {\"user\":\"u\",\"pass\":\"p\",\"headers\":true}\r\nHPUB x 900 5\r\nhello\r\n",
	"not our protocol":    "\x00\xff\xfe" + strings.Repeat("A", 8<<10) + "\r\n",
	"a route":             "CONNECT {\"verbose\":false,\"name\":\"x\",\"cluster\":\"c\"}\r\nRS+ $G > \r\n",
}

// TestAbusedSockets: what strangers write ends their connection and nothing else.
func TestAbusedSockets(t *testing.T) {
	s := natstest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p"}}
		o.AuthTimeout = 1
	})
	url := strings.Replace(s.URL(), "nats://", "nats://u:p@", 1)
	a, b := join(t, url, "a"), join(t, url, "b")
	awaitView(t, a, members(2))
	for name, text := range abuses {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, s)
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			fmt.Fprint(conn, text)
			ended := false
			for r := bufio.NewReader(conn); !ended; { // the server's INFO, then its error, then the end
				_, err := r.ReadString('\n')
				if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
					t.Fatal("the server keeps the connection")
				}
				ended = err != nil
			}
		})
	}
	exchange(t, a, b)
}

func dial(t *testing.T, s *natstest.Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestSilentSockets: strangers take all connections and say nothing. Members that
// are connected are not disturbed, and one that comes gets in when the strangers'
// time to say who they are has passed.
func TestSilentSockets(t *testing.T) {
	s := natstest.Start(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p"}}
		o.AuthTimeout, o.MaxConn = 1, 20
	})
	url := strings.Replace(s.URL(), "nats://", "nats://u:p@", 1)
	a, b := join(t, url, "a"), join(t, url, "b")
	awaitView(t, a, members(2))
	inc := a.Incarnation()
	for range 40 {
		dial(t, s)
	}
	join(t, url, "c")
	exchange(t, a, b)
	if a.Incarnation() != inc || !slices.ContainsFunc(a.View().Members, func(m fabric.Member) bool { return m.PID == "b" }) {
		t.Error("members were disturbed")
	}
}

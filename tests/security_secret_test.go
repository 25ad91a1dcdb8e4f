package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// canary stands for a secret: it must not be seen anywhere.
const canary = "canary7xq"

// A cage collects everything that a node says: log, errors, and what fmt and JSON
// make of its values.
type cage struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (c *cage) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *cage) note(values ...any) {
	for _, v := range values {
		data, _ := json.Marshal(v)
		fmt.Fprintf(c, "%v %+v %#v %s\n", v, v, v, data)
		if err, ok := v.(error); ok {
			fmt.Fprintf(c, "%s %q\n", err.Error(), err)
		}
	}
}

// join tries to join, notes what comes of it, and returns the error.
func (c *cage) join(ctx context.Context, cfg fabric.Config) (*fabric.Node, error) {
	cfg.Cluster = "t"
	cfg.Logger = slog.New(slog.NewTextHandler(c, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n, err := fabric.Join(ctx, cfg)
	c.note(cfg, &cfg, err, n)
	cfg.Logger.Info("config", "cfg", cfg, "node", n, "err", err)
	return n, err
}

// TestTheCageSees: what is printed without a Config's own methods is noticed.
func TestTheCageSees(t *testing.T) {
	type bare fabric.Config
	c := &cage{}
	c.note(fabric.Config{URL: "nats://u:" + canary + "@h"})
	if strings.Contains(c.text.String(), canary) {
		t.Error("a Config shows its secret")
	}
	c.note(bare(fabric.Config{URL: "nats://u:" + canary + "@h"}))
	if !strings.Contains(c.text.String(), canary) {
		t.Error("a secret is not noticed")
	}
}

// TestSecretsStay: on every path on which Join or a node fails, no secret is in an
// error, the log, or what fmt and JSON make of configurations, nodes and events.
func TestSecretsStay(t *testing.T) {
	t.Parallel()
	user := &server.User{Username: "u", Password: canary}
	serve := func(t *testing.T, tune ...func(*server.Options)) (*natstest.Server, string) {
		s := natstest.Start(t, append([]func(*server.Options){func(o *server.Options) { o.Users = []*server.User{user} }}, tune...)...)
		return s, strings.Replace(s.URL(), "nats://", "nats://u:"+canary+"@", 1)
	}
	try := func(cfg fabric.Config, want string) func(*testing.T, *cage) {
		return func(t *testing.T, c *cage) {
			n, err := c.join(within(t, 2*time.Second), cfg)
			if err == nil {
				leave(t, n)
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Join = %v, want %q", err, want)
			}
		}
	}
	for name, path := range map[string]func(*testing.T, *cage){
		"a URL that is none":    try(fabric.Config{URL: "nats://u:" + canary + " x@h"}, "no URL"),
		"a port that is none":   try(fabric.Config{URL: "nats://u:" + canary}, "no URL"),
		"a scheme that is none": try(fabric.Config{URL: "http://u:" + canary + "@h"}, "scheme"),
		"a list with one":       try(fabric.Config{URL: "nats://a,nats://u:%zz" + canary + "@h"}, "no URL"),
		"nobody is there":       try(fabric.Config{URL: "nats://u:" + canary + "@127.0.0.1:1"}, "cannot connect"),
		"no such host":          try(fabric.Config{URL: "nats://u:" + canary + "@host.invalid:1"}, "cannot connect"),
		"a token, nobody":       try(fabric.Config{URL: "nats://" + canary + "@127.0.0.1:1"}, "cannot connect"),
		"a password, nobody":    try(fabric.Config{URL: "nats://127.0.0.1:1", NATS: []nats.Option{nats.UserInfo("u", canary)}}, "cannot connect"),
		"no JetStream": func(t *testing.T, c *cage) {
			try(fabric.Config{URL: strings.Replace(plain(t), "nats://", "nats://u:"+canary+"@", 1)}, "no JetStream")(t, c)
		},
		"wrong password": func(t *testing.T, c *cage) {
			s, _ := serve(t)
			try(fabric.Config{URL: strings.Replace(s.URL(), "nats://", "nats://u:wrong"+canary+"@", 1)}, "uthorization")(t, c)
			try(fabric.Config{URL: s.URL(), NATS: []nats.Option{nats.Token(canary + "1")}}, "uthorization")(t, c)
			try(fabric.Config{URL: s.URL(), NATS: []nats.Option{nats.UserJWTAndSeed(canary, canary)}}, "")(t, c)
		},
		"wrong password of the second connection": func(t *testing.T, c *cage) {
			s, url := serve(t)
			try(fabric.Config{URL: url, Control: []nats.Option{nats.UserInfo("u", canary+"1")}}, "both connections")(t, c)
			try(fabric.Config{
				URL: s.URL(), NATS: []nats.Option{nats.UserInfo("u", canary)}, Control: []nats.Option{nats.UserInfo("u", canary+"1")},
			}, "uthorization")(t, c)
		},
		"bad credentials": func(t *testing.T, c *cage) {
			_, url := serve(t)
			file := filepath.Join(t.TempDir(), "x.creds")
			if err := os.WriteFile(file, []byte("-----BEGIN USER NKEY SEED-----\n"+canary+"\n------END USER NKEY SEED------\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			try(fabric.Config{URL: url, NATS: []nats.Option{nats.UserCredentials(file)}}, "")(t, c)
			try(fabric.Config{URL: url, NATS: []nats.Option{nats.UserCredentials(file + ".none")}}, "")(t, c)
		},
		"no TLS": func(t *testing.T, c *cage) {
			_, url := serve(t)
			try(fabric.Config{URL: strings.Replace(url, "nats://", "tls://", 1)}, "")(t, c)
		},
		"a permission": func(t *testing.T, c *cage) {
			_, url := serve(t, func(o *server.Options) {
				o.Users = []*server.User{{Username: "u", Password: canary, Permissions: &server.Permissions{Publish: &server.SubjectPermission{Allow: []string{"x"}}}}}
			})
			try(fabric.Config{URL: url}, "permission denied")(t, c)
		},
		"the PID in use": func(t *testing.T, c *cage) {
			_, url := serve(t)
			join(t, url, "a")
			n, err := c.join(within(t, patience), fabric.Config{URL: url, PID: "a"})
			if err == nil {
				t.Errorf("Join = %v", n)
			}
		},
		"the bucket": func(t *testing.T, c *cage) {
			s, url := serve(t)
			js, err := jetstream.New(s.Connect(nats.UserInfo("u", canary)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "fab_t_production"}); err != nil {
				t.Fatal(err)
			}
			try(fabric.Config{URL: url}, "want")(t, c)
		},
		"the server goes": func(t *testing.T, c *cage) {
			s, url := serve(t)
			n, err := c.join(within(t, patience), fabric.Config{URL: url, PID: "a", Lease: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			s.Stop()
			for ev, err := range n.Events(within(t, patience)) {
				c.note(ev, err, n, n.View(), n.Stats())
				if ev.Kind == fabric.Lost || err != nil {
					break
				}
			}
			ctx := within(t, time.Second)
			c.note(n.Send(ctx, "b", nil), n.Flush(ctx), n.SetMeta(ctx, nil), n.Broadcast(ctx, nil))
			_, err = n.Request(ctx, "b", nil)
			c.note(err, n.Leave(ctx), context.Cause(n.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &cage{}
			path(t, c)
			c.mu.Lock()
			defer c.mu.Unlock()
			for line := range strings.Lines(c.text.String()) {
				if strings.Contains(line, canary) {
					t.Errorf("the secret is in %q", line)
				}
			}
			if c.text.Len() == 0 {
				t.Error("nothing was said at all")
			}
		})
	}
}

// TestWhoStartsProcesses: only the commands that a user hands over are started, in one
// place, so nothing of ours puts anything on another's command line. What tests start
// is no part of a program.
func TestWhoStartsProcesses(t *testing.T) {
	starters := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				x, _ := sel.X.(*ast.Ident)
				switch name := sel.Sel.Name; {
				case x == nil:
				case x.Name == "exec" && (name == "Command" || name == "CommandContext" || name == "Cmd"),
					x.Name == "os" && name == "StartProcess",
					(x.Name == "syscall" || x.Name == "unix") && (name == "ForkExec" || name == "StartProcess" || name == "Exec"):
					starters[filepath.ToSlash(path)] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for path := range starters {
		switch {
		case strings.HasPrefix(path, "../internal/natstest/"):
		case strings.HasPrefix(path, "../cmd/fabric-node/child"):
		default:
			t.Errorf("%s starts processes: see that no secret is on their command line", path)
		}
	}
	if !starters["../cmd/fabric-node/child.go"] {
		t.Error("nothing starts processes: the test looks for something else")
	}
}

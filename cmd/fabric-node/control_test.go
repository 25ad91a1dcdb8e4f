package main

import (
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/natsfabric/natsfabric/fabric"
)

// Where messages and the bucket are in two accounts, the program makes both
// connections, with what FABRIC_CONTROL_* says for the second.
func TestTwoAccounts(t *testing.T) {
	t.Setenv("FABRIC_PASSWORD_root", "r00t")
	t.Setenv("FABRIC_PASSWORD_web_1", "w3b")
	for _, layout := range []string{"split", "isolated"} {
		_, conf, errs := runCLI(t, "permissions", "-k", "shop", "--accounts", layout, "root=admin", "web-1=observer")
		opts := &server.Options{}
		if err := opts.ProcessConfigString(conf); err != nil {
			t.Fatalf("%v\n%s", err, errs)
		}
		opts.JetStream = true
		addr := natsServer(t, opts)
		as := func(pid, password string, args ...string) (int, string, string) {
			t.Setenv("NATS_USER", pid)
			t.Setenv("NATS_PASSWORD", password)
			t.Setenv("FABRIC_CONTROL_USER", pid+".ctl")
			t.Setenv("FABRIC_CONTROL_PASSWORD", password)
			return runCLI(t, append(args, "-k", "shop", "-i", pid, "-s", addr)...)
		}
		t.Setenv("NATS_USER", "root")
		t.Setenv("NATS_PASSWORD", "r00t")
		t.Setenv("FABRIC_CONTROL_USER", "root.ctl")
		t.Setenv("FABRIC_CONTROL_PASSWORD", "r00t")
		a := &app{opts: options{cluster: "shop", env: "production", pid: "root"}, log: nil}
		ep, err := a.endpoint()
		if err != nil {
			t.Fatal(err)
		}
		ep.url = "nats://" + addr
		cfg := a.config(ep, false)
		node, err := fabric.Join(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer node.Leave(t.Context())
		if code, out, errs := as("web-1", "w3b", "members", "--role", "observer", "-o", "json"); code != exitOK || !strings.Contains(out, `"pid": "root"`) {
			t.Errorf("%s: members: exit code %d\n%s%s", layout, code, out, errs)
		}
		if code, out, errs := as("web-1", "w3b", "send", "--role", "observer", "root", "hello"); code != exitOK {
			t.Errorf("%s: send: exit code %d\n%s%s", layout, code, out, errs)
		}
		if m, err := node.Receive(t.Context()); err != nil || m.From != "web-1" {
			t.Errorf("%s: received %v, %v", layout, m, err)
		}
		if code, out, _ := as("web-1", "w3b", "doctor", "--role", "observer"); code != exitOK {
			t.Errorf("%s: doctor: exit code %d\n%s", layout, code, out)
		}
		if code, out, _ := as("web-1", "w3b", "doctor", "--role", "member"); code != int(critical) || !strings.Contains(out, "c.p.web-1") {
			t.Errorf("%s: doctor of a role that it has not: exit code %d\n%s", layout, code, out)
		}
		if code, out, errs := as("web-1", "wrong", "members", "--role", "observer"); code != exitConnect || strings.Contains(out+errs, "wrong") {
			t.Errorf("%s: with a wrong password: exit code %d\n%s%s", layout, code, out, errs)
		}
	}
}

package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/natsfabric/natsfabric/fabric"
)

// examine runs doctor and returns its findings that are not ok, by check.
func examine(t *testing.T, args ...string) (code int, all doctorObject, wrong map[string]finding) {
	t.Helper()
	code, out, errs := runCLI(t, append([]string{"doctor", "-k", "shop", "-o", "json", "--timeout", "2s"}, args...)...)
	var found struct {
		Server   string
		Severity string
		Findings []struct{ Check, Severity, Message, Fix string }
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	wrong = map[string]finding{}
	for _, f := range found.Findings {
		if f.Severity != "ok" {
			wrong[f.Check] = finding{Check: f.Check, Message: f.Message, Fix: f.Fix}
			if f.Fix == "" {
				t.Errorf("%s: %s: there is no fix", f.Check, f.Message)
			}
		}
	}
	return code, doctorObject{Server: found.Server}, wrong
}

func joinShop(t *testing.T, url, pid string, tune ...func(*fabric.Config)) *fabric.Node {
	t.Helper()
	cfg := fabric.Config{Cluster: "shop", PID: fabric.PID(pid), URL: url}
	for _, f := range tune {
		f(&cfg)
	}
	node, err := fabric.Join(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Leave(t.Context()) })
	return node
}

// A fabric with nothing wrong: exit code 0, and every check is in the output.
func TestDoctorFindsNothing(t *testing.T) {
	addr := natsServer(t, &server.Options{JetStream: true, Username: "u", Password: "right"})
	at := "nats://u:right@" + addr
	t.Setenv("FABRIC_SERVER", at)
	node := joinShop(t, at, "web-1")
	for _, role := range []string{"observer", "member", "candidate", "admin"} {
		if code, _, wrong := examine(t, "--role", role); code != exitOK || len(wrong) > 0 {
			t.Errorf("role %s: exit code %d, found %v", role, code, wrong)
		}
	}
	code, _, wrong := examine(t, "-s", at)
	if f := wrong["identity"]; code != int(warning) || !strings.Contains(f.Message, "command line") || !strings.Contains(f.Fix, "FABRIC_SERVER") {
		t.Errorf("a password on the command line: exit code %d, found %v", code, wrong)
	}
	_, out, _ := runCLI(t, "doctor", "-k", "shop")
	for _, check := range []string{"limits", "connection", "server", "payload", "jetstream", "bucket", "clock", "records", "members", "permissions"} {
		if !strings.Contains(out, "ok        "+check+" ") {
			t.Errorf("%s is not looked at:\n%s", check, out)
		}
	}
	if strings.Contains(out, "right") && strings.Contains(out, "u:right") {
		t.Errorf("the password is shown:\n%s", out)
	}
	code, out, _ = runCLI(t, "doctor", "-k", "shop", "--nagios")
	first, _, _ := strings.Cut(out, "\n")
	if code != 0 || !strings.HasPrefix(first, "FABRIC OK: ") || !strings.Contains(first, " | rtt=0.") || !strings.Contains(first, "members=1") {
		t.Errorf("exit code %d, %s", code, first)
	}
	// Looking has changed nothing.
	if m := node.View().Members; len(m) != 1 || node.Stats().Received > 0 {
		t.Errorf("the members are %v, %d messages were received", m, node.Stats().Received)
	}
}

// What is broken is found, and the exit code says how badly.
func TestDoctorFinds(t *testing.T) {
	open := func(t *testing.T, tune ...func(*server.Options)) string {
		o := &server.Options{JetStream: true, Username: "u", Password: "right"}
		for _, f := range tune {
			f(o)
		}
		return "nats://u:right@" + natsServer(t, o)
	}
	stream := func(t *testing.T, at string, f func(*jetstream.StreamConfig)) {
		t.Helper()
		js := jetStreamAt(t, at)
		s, err := js.Stream(t.Context(), "KV_fab_shop_production")
		if err != nil {
			t.Fatal(err)
		}
		cfg := s.CachedInfo().Config
		f(&cfg)
		if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	put := func(t *testing.T, at, key, value string) {
		t.Helper()
		if _, err := jetStreamAt(t, at).Publish(t.Context(), "$KV.fab_shop_production."+key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		start   func(t *testing.T) (at string)
		check   string
		message string
		fix     string
		code    severity
		args    []string
	}{
		{"no server", func(*testing.T) string { return "nats://u:hunter2@127.0.0.1:1" }, "connection", "no servers", "fabric-node server", critical, nil},
		{"wrong password", func(t *testing.T) string { return strings.Replace(open(t), "right", "hunter2", 1) }, "connection", "uthorization", "NATS_CREDS", critical, nil},
		{"no JetStream", func(t *testing.T) string { return open(t, func(o *server.Options) { o.JetStream = false }) }, "jetstream", "no JetStream", "nats-server -js", critical, nil},
		{"JetStream is silent", func(t *testing.T) string {
			at := open(t, func(o *server.Options) { o.JetStream = false })
			nc, err := nats.Connect(at)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			nc.SubscribeSync("$JS.API.INFO") // as of servers without a majority: nobody answers
			nc.Flush()
			return at
		}, "jetstream", "deadline", "majority", critical, nil},
		{"nobody has joined", func(t *testing.T) string { return open(t) }, "bucket", "nobody has joined", "admin", warning, nil},
		{"anybody may come", func(t *testing.T) string {
			at := "nats://" + natsServer(t, &server.Options{JetStream: true})
			joinShop(t, at, "a")
			return at
		}, "identity", "anybody", "fabric-node permissions", warning, nil},
		{"a setting", func(t *testing.T) string {
			at := open(t)
			joinShop(t, at, "a")
			stream(t, at, func(c *jetstream.StreamConfig) { c.AllowDirect = true })
			return at
		}, "bucket", "allow_direct is true, want false", "fabric-node repair -k shop", critical, nil},
		{"a foreign record", func(t *testing.T) string {
			at := open(t)
			joinShop(t, at, "a")
			put(t, at, "c.e.billing", "garbage")
			return at
		}, "records", "c.e.billing", "nats kv del fab_shop_production c.e.billing", critical, nil},
		{"a corrupt view", func(t *testing.T) string {
			at := open(t)
			joinShop(t, at, "a")
			put(t, at, "v.other", `{"key":"v.members"}`)
			return at
		}, "records", "v.other", "nats kv del", critical, nil},
		{"a small payload", func(t *testing.T) string {
			at := open(t, func(o *server.Options) { o.MaxPayload = 100_000 })
			joinShop(t, at, "a")
			return at
		}, "payload", "100000 bytes", "max_payload", critical, nil},
		{"the PID in use", func(t *testing.T) string {
			at := open(t)
			joinShop(t, at, "a")
			return at
		}, "pids", "a is held", "--pid", warning, []string{"-i", "a"}},
		{"a dead member", func(t *testing.T) string {
			at := open(t)
			joinShop(t, at, "a")
			put(t, at, "c.p.x", `{"key":"c.p.x","state":"held","pid":"x","since":"2026-01-01T00:00:00Z","proc":"p","nonce":"n"}`)
			return at
		}, "members", "not heard", "candidate", warning, nil},
		{"a full account", func(t *testing.T) string {
			at := open(t, func(o *server.Options) {
				*o = server.Options{}
				if err := o.ProcessConfigString(`accounts { A { jetstream: { max_file: 32MB }, users: [ { user: u, password: right } ] } }`); err != nil {
					t.Fatal(err)
				}
				o.JetStream = true
			})
			joinShop(t, at, "a")
			return at
		}, "jetstream", "may run out", "more storage", warning, nil},
		{"a stranger as second server", func(t *testing.T) string {
			at := open(t)
			joinShop(t, at, "a")
			return at + ",nats://u:hunter2@127.0.0.1:1"
		}, "routes", "does not answer", "start that server", warning, nil},
		{"illegal name", func(t *testing.T) string { return open(t) }, "names", "illegal pid", "other names", critical, []string{"-i", "*"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("FABRIC_SERVER", tt.start(t))
			code, all, wrong := examine(t, tt.args...)
			f := wrong[tt.check]
			if severity(code) != tt.code || !strings.Contains(f.Message, tt.message) || !strings.Contains(f.Fix, tt.fix) {
				t.Errorf("exit code %d, found %v; want %d, %s: %q, fix %q", code, wrong, tt.code, tt.check, tt.message, tt.fix)
			}
			if text := fmt.Sprint(all, wrong); strings.Contains(text, "hunter2") || strings.Contains(text, "u:right") {
				t.Errorf("a password is shown: %s", text)
			}
		})
	}
}

func jetStreamAt(t *testing.T, at string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Every permission of every role, taken away in turn, is named by doctor.
func TestDoctorTriesPermissions(t *testing.T) {
	root := &server.User{Username: "root", Password: "p"}
	for _, role := range []fabric.Role{fabric.RoleMember, fabric.RoleCandidate} {
		p, err := fabric.Config{Cluster: "shop", PID: "web-1"}.Permissions(fabric.Scope{Role: role})
		if err != nil {
			t.Fatal(err)
		}
		all := p.All()
		limits := &server.Options{JetStream: true, Users: []*server.User{root}}
		without := func(list []string, i int) []string { return append(append([]string{}, list[:i]...), list[i+1:]...) }
		user := func(publish, subscribe []string) string {
			name := fmt.Sprintf("u%d", len(limits.Users))
			limits.Users = append(limits.Users, &server.User{Username: name, Password: "p", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Allow: publish}, Subscribe: &server.SubjectPermission{Allow: subscribe},
			}})
			return name
		}
		lacks := map[string]string{}
		complete := user(all.Publish, all.Subscribe)
		for i, s := range all.Publish {
			lacks[user(without(all.Publish, i), all.Subscribe)] = s
		}
		for i, s := range all.Subscribe {
			lacks[user(all.Publish, without(all.Subscribe, i))] = s
		}
		addr := natsServer(t, limits)
		at := func(name string) string {
			return (&url.URL{Scheme: "nats", User: url.UserPassword(name, "p"), Host: addr}).String()
		}
		as := func(name string) []string {
			t.Setenv("FABRIC_SERVER", at(name))
			return []string{"-i", "web-1", "--role", role.String()}
		}
		joinShop(t, at("root"), "a")
		if code, _, wrong := examine(t, as(complete)...); code != exitOK {
			t.Errorf("%v: with all permissions: exit code %d, %v", role, code, wrong)
		}
		named := 0
		for name, subject := range lacks {
			code, _, wrong := examine(t, as(name)...)
			covered := covers(append(all.Publish, all.Subscribe...), subject)
			if !covered && (severity(code) != critical || len(wrong) == 0) {
				t.Errorf("%v without %s: exit code %d, %v", role, subject, code, wrong)
			}
			if !covered {
				named++
			}
		}
		t.Logf("%v: %d of %d permissions are needed and missed", role, named, len(lacks))
	}
}

// covers reports whether another of the patterns allows what subject does.
func covers(patterns []string, subject string) bool {
	for _, p := range patterns {
		if p != subject && server.SubjectsCollide(p, subject) && within(p, subject) {
			return true
		}
	}
	return false
}

// within reports whether pattern matches everything that subject does.
func within(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i := range p {
		if p[i] == ">" {
			return len(s) > i
		}
		if i >= len(s) || p[i] != "*" && p[i] != s[i] || s[i] == ">" {
			return false
		}
	}
	return len(p) == len(s)
}

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"
)

// applied is what options make of nats.go's defaults.
func applied(t *testing.T, opts []nats.Option) nats.Options {
	t.Helper()
	o := nats.GetDefaultOptions()
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func TestCredentials(t *testing.T) {
	for _, tt := range []struct {
		env   map[string]string
		check func(nats.Options) bool
	}{
		{nil, func(o nats.Options) bool { return o.User == "" && o.Token == "" && !o.Secure }},
		{map[string]string{"NATS_USER": "u", "NATS_PASSWORD": "p"}, func(o nats.Options) bool { return o.User == "u" && o.Password == "p" }},
		{map[string]string{"NATS_USER": "u"}, func(o nats.Options) bool { return o.Token == "u" && o.User == "" }},
		{map[string]string{"NATS_TOKEN": "t"}, func(o nats.Options) bool { return o.Token == "t" }},
		{map[string]string{"NATS_JWT": "j", "NATS_SEED": "s"}, func(o nats.Options) bool { return o.UserJWT != nil && o.SignatureCB != nil }},
		{map[string]string{"NATS_SOCKS_PROXY": "socks5://127.0.0.1:1080"}, func(o nats.Options) bool { return o.CustomDialer != nil }},
	} {
		opts, err := credentials(func(name string) string { return tt.env[name] })
		if err != nil {
			t.Errorf("%v: %v", tt.env, err)
			continue
		}
		if !tt.check(applied(t, opts)) {
			t.Errorf("%v: not as wanted", tt.env)
		}
	}
}

func TestBadCredentials(t *testing.T) {
	for _, tt := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"NATS_PASSWORD": "secret"}, "NATS_USER is not"},
		{map[string]string{"NATS_JWT": "secret"}, "belong together"},
		{map[string]string{"NATS_SEED": "secret"}, "belong together"},
		{map[string]string{"NATS_CREDS": "/no/such/file"}, "NATS_CREDS: stat /no/such/file"},
		{map[string]string{"NATS_CA": "/no/such/file"}, "NATS_CA"},
		{map[string]string{"NATS_CERT": os.DevNull}, "belong together"},
		{map[string]string{"NATS_NKEY": os.DevNull}, "NATS_NKEY"},
		{map[string]string{"NATS_SOCKS_PROXY": "socks5://u:secret@h:x"}, "NATS_SOCKS_PROXY"},
		{map[string]string{"NATS_SOCKS_PROXY": "gopher://u:secret@h"}, "NATS_SOCKS_PROXY"},
	} {
		_, err := credentials(func(name string) string { return tt.env[name] })
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") || exitCode(err) != exitUsage {
			t.Errorf("%v: %v, exit code %d; want %q in it", tt.env, err, exitCode(err), tt.want)
		}
	}
}

// writeContext writes a NATS context as the nats command does, and selects it.
func writeContext(t *testing.T, name, text string) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", contextHome(t, name, text))
}

// contextHome returns a directory of configurations in which a context is selected.
func contextHome(t *testing.T, name, text string) string {
	t.Helper()
	home := t.TempDir()
	dir := filepath.Join(home, "nats", "context")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		filepath.Join(dir, name+".json"):           text,
		filepath.Join(home, "nats", "context.txt"): name,
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return home
}

func TestContext(t *testing.T) {
	writeContext(t, "prod", `{"url":"nats://a:1,nats://b:2","user":"u","password":"p","jetstream_domain":"hub"}`)
	a, _, _ := testApp("table")

	ep, err := a.endpoint()
	if err != nil || ep.url != nats.DefaultURL || len(ep.nats) != 0 {
		t.Errorf("a context that nobody named: %+v, %v; want the default server", ep, err)
	}
	a.opts.context = "prod"
	ep, err = a.endpoint()
	if err != nil {
		t.Fatal(err)
	}
	if o := applied(t, ep.nats); ep.url != "nats://a:1,nats://b:2" || ep.domain != "hub" || o.User != "u" || o.Password != "p" {
		t.Errorf("context: %+v with user %q", ep, o.User)
	}
	t.Setenv("NATS_URL", "nats://other")
	if ep, _ = a.endpoint(); ep.url != "nats://a:1,nats://b:2" {
		t.Errorf("NATS_URL wins over the named context: %s", ep.url)
	}
	a.opts.server = "nats://flag"
	t.Setenv("NATS_USER", "u2")
	t.Setenv("NATS_PASSWORD", "p2")
	if ep, err = a.endpoint(); err != nil || ep.url != "nats://flag" || applied(t, ep.nats).User != "u2" {
		t.Errorf("--server and NATS_USER beside a context: %+v, %v", ep, err)
	}
	a.opts.context = "test"
	if _, err = a.endpoint(); exitCode(err) != exitUsage || !strings.Contains(err.Error(), `"test"`) {
		t.Errorf("unknown context: %v, exit code %d", err, exitCode(err))
	}
}

func TestServerFlags(t *testing.T) {
	for _, tt := range []struct {
		args string
		m    master
	}{
		{"--addr 127.0.0.1:0", master{addr: "127.0.0.1:0"}},
		{"--store /tmp", master{store: "/tmp"}},
	} {
		a, _, _ := testApp("table")
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		var m master
		m.bindEmbedded(fs)
		if err := fs.Parse(strings.Fields(tt.args)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.server(t.Context(), &m, fs); exitCode(err) != exitUsage {
			t.Errorf("%s without --embedded: %v, want a usage error", tt.args, err)
		}
	}
}

func TestInput(t *testing.T) {
	for _, tt := range []struct {
		flags string
		args  []string
		want  string
	}{
		{"", nil, ""},
		{"", []string{"x"}, "x"},
		{"", []string{"-"}, "from stdin"},
		{"--count 3", []string{"x"}, "x1 x2 x3"},
		{"--count 1", []string{"x"}, "x1"},
		{"--count 2", nil, "1 2"},
	} {
		var in input
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		in.bind(fs)
		if err := fs.Parse(strings.Fields(tt.flags)); err != nil {
			t.Fatal(err)
		}
		if err := in.read(strings.NewReader("from stdin"), tt.args); err != nil {
			t.Fatal(err)
		}
		var all [][]byte
		for i := range in.len() {
			all = append(all, in.at(i))
		}
		if got := string(bytes.Join(all, []byte(" "))); got != tt.want {
			t.Errorf("%s %q: sends %q, want %q", tt.flags, tt.args, got, tt.want)
		}
	}
	in := input{count: 0}
	if err := in.read(strings.NewReader(""), nil); exitCode(err) != exitUsage {
		t.Errorf("--count 0: %v", err)
	}
}

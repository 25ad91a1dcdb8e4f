package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// parse parses a command line up to where the command would run.
func parse(t *testing.T, env map[string]string, args ...string) (*app, error) {
	t.Helper()
	for k, v := range env {
		t.Setenv(k, v)
	}
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, told: io.Discard}
	root := newRoot(a)
	root.AddCommand(&cobra.Command{Use: "nothing", RunE: func(*cobra.Command, []string) error { return nil }})
	root.SetArgs(append([]string{"nothing"}, args...))
	return a, root.Execute()
}

func TestFlagsAndEnvironment(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		args string
		got  func(options) any
		val  any
	}{
		{name: "default cluster", got: func(o options) any { return o.cluster }, val: "fabric"},
		{name: "default env", got: func(o options) any { return o.env }, val: "production"},
		{name: "default group", got: func(o options) any { return o.group }, val: "default"},
		{name: "default ttl", got: func(o options) any { return o.ttl }, val: 5 * time.Second},
		{name: "default timeout", got: func(o options) any { return o.timeout }, val: 5 * time.Second},
		{name: "default output", got: func(o options) any { return o.output }, val: "table"},
		{name: "default server", got: func(o options) any { return o.server }, val: ""},
		{name: "-k", args: "-k a", got: func(o options) any { return o.cluster }, val: "a"},
		{name: "--key", args: "--key a", got: func(o options) any { return o.cluster }, val: "a"},
		{name: "--cluster", args: "--cluster=a", got: func(o options) any { return o.cluster }, val: "a"},
		{name: "-p", args: "-p a", got: func(o options) any { return o.group }, val: "a"},
		{name: "--partition", args: "--partition a", got: func(o options) any { return o.group }, val: "a"},
		{name: "-i", args: "-i a", got: func(o options) any { return o.pid }, val: "a"},
		{name: "--id", args: "--id a", got: func(o options) any { return o.pid }, val: "a"},
		{name: "-s", args: "-s nats://a,nats://b", got: func(o options) any { return o.server }, val: "nats://a,nats://b"},
		{name: "-r", args: "-r nats://a", got: func(o options) any { return o.server }, val: "nats://a"},
		{name: "--registry", args: "--registry nats://a", got: func(o options) any { return o.server }, val: "nats://a"},
		{name: "-r is a flag", args: "-r nats://a", got: func(o options) any { return o.serverFlag }, val: true},
		{name: "cluster", env: map[string]string{"FABRIC_CLUSTER": "x"}, got: func(o options) any { return o.cluster }, val: "x"},
		{name: "env", env: map[string]string{"FABRIC_ENV": "x"}, got: func(o options) any { return o.env }, val: "x"},
		{name: "group", env: map[string]string{"FABRIC_GROUP": "x"}, got: func(o options) any { return o.group }, val: "x"},
		{name: "pid", env: map[string]string{"FABRIC_ID": "x"}, got: func(o options) any { return o.pid }, val: "x"},
		{name: "server", env: map[string]string{"FABRIC_SERVER": "nats://x"}, got: func(o options) any { return o.server }, val: "nats://x"},
		{name: "ttl", env: map[string]string{"FABRIC_TTL": "7s"}, got: func(o options) any { return o.ttl }, val: 7 * time.Second},
		{name: "timeout", env: map[string]string{"FABRIC_TIMEOUT": "7s"}, got: func(o options) any { return o.timeout }, val: 7 * time.Second},
		{name: "output", env: map[string]string{"FABRIC_OUTPUT": "json"}, got: func(o options) any { return o.output }, val: "json"},
		{name: "verbose", env: map[string]string{"FABRIC_VERBOSE": "true"}, got: func(o options) any { return o.verbose }, val: true},
		{name: "quiet", env: map[string]string{"FABRIC_QUIET": "1"}, got: func(o options) any { return o.quiet }, val: true},
		{name: "context", env: map[string]string{"NATS_CONTEXT": "x"}, got: func(o options) any { return o.context }, val: "x"},
		{name: "flag wins", env: map[string]string{"FABRIC_CLUSTER": "x"}, args: "-k a", got: func(o options) any { return o.cluster }, val: "a"},
		{name: "alias wins", env: map[string]string{"FABRIC_CLUSTER": "x"}, args: "--key a", got: func(o options) any { return o.cluster }, val: "a"},
		{name: "-r wins", env: map[string]string{"FABRIC_SERVER": "nats://x"}, args: "-r nats://a", got: func(o options) any { return o.server }, val: "nats://a"},
		{name: "flag with the default's value wins", env: map[string]string{"FABRIC_TTL": "7s"}, args: "--ttl 5s", got: func(o options) any { return o.ttl }, val: 5 * time.Second},
		{name: "empty is unset", env: map[string]string{"FABRIC_TTL": ""}, got: func(o options) any { return o.ttl }, val: 5 * time.Second},
		{name: "no env is the default", args: "--env=", got: func(o options) any { return o.env }, val: "production"},
		{name: "lead's variable is no twin", env: map[string]string{"FABRIC_PID": "x"}, got: func(o options) any { return o.pid }, val: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := parse(t, tt.env, strings.Fields(tt.args)...)
			if err != nil {
				t.Fatalf("%q with %v: %v", tt.args, tt.env, err)
			}
			if got := tt.got(a.opts); got != tt.val {
				t.Errorf("%q with %v: got %v, want %v", tt.args, tt.env, got, tt.val)
			}
		})
	}
}

func TestBadFlags(t *testing.T) {
	for _, tt := range []struct {
		env  map[string]string
		args string
		want string // part of the error
	}{
		{args: "--clustr x", want: "unknown flag --clustr; did you mean --cluster?"},
		{args: "--regstry x", want: "did you mean --registry?"},
		{args: "--partion x", want: "did you mean --partition?"},
		{args: "--time 5s", want: "did you mean --timeout?"},
		{args: "--xyzzyplugh x", want: "unknown flag --xyzzyplugh"},
		{args: "-Z", want: "unknown flag -Z"},
		{args: "--ttl", want: "needs an argument"},
		{args: "--ttl 5", want: `--ttl "5": not a duration`},
		{args: "--ttl 1ms", want: "--ttl 1ms: choose between 1s and 10m0s"},
		{args: "--ttl 1h", want: "--ttl 1h0m0s: choose between"},
		{args: "--timeout 0s", want: "--timeout 0s: it must be positive"},
		{args: "-o xml", want: `output format "xml": choose table, json or ndjson`},
		{args: "-v -q", want: "exclude each other"},
		{args: "-s ftp://host", want: `server "ftp://host" is not of the form`},
		{args: "-s nats://", want: "is not of the form"},
		{args: "-s nats://a,,nats://b", want: "is not of the form"},
		{args: "-s nats://a:port", want: "is not of the form"},
		{env: map[string]string{"FABRIC_TTL": "soon"}, want: `FABRIC_TTL="soon": not a duration`},
		{env: map[string]string{"FABRIC_VERBOSE": "maybe"}, want: `FABRIC_VERBOSE="maybe": not true or false`},
		{env: map[string]string{"FABRIC_OUTPUT": "xml"}, want: "choose table, json or ndjson"},
	} {
		t.Run(fmt.Sprint(tt.args, tt.env), func(t *testing.T) {
			_, err := parse(t, tt.env, strings.Fields(tt.args)...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q in it", err, tt.want)
			}
			if got := exitCode(asUsage(err, "x")); got != exitUsage {
				t.Errorf("exit code %d, want %d", got, exitUsage)
			}
		})
	}
}

// Every global flag has an environment twin, documented in its help, and no
// command hides a global flag by one of its own.
func TestEveryFlag(t *testing.T) {
	root := newRoot(&app{})
	envs := map[string]string{}
	for _, tw := range twins {
		envs[tw.flag] = tw.env
	}
	if len(envs) != len(twins) {
		t.Errorf("twins has a flag twice: %v", twins)
	}
	shorthands := map[string]string{}
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) {
		shorthands[f.Shorthand] = f.Name
		if f.Hidden {
			return
		}
		if env, ok := envs[f.Name]; !ok || !strings.Contains(f.Usage, "[$"+env+"]") {
			t.Errorf("--%s has no environment twin in its help: %q", f.Name, f.Usage)
		}
	})
	delete(shorthands, "")
	for _, c := range root.Commands() {
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if other, ok := shorthands[f.Shorthand]; ok || root.PersistentFlags().Lookup(f.Name) != nil {
				t.Errorf("%s: -%s, --%s hides the global flag %s", c.Name(), f.Shorthand, f.Name, other)
			}
			if f.Usage == "" {
				t.Errorf("%s --%s has no help", c.Name(), f.Name)
			}
		})
	}
}

func TestEveryCommand(t *testing.T) {
	want := map[string]bool{
		"demo": true, "run": true, "members": true, "watch": true, "send": true, "broadcast": true,
		"recv": true, "request": true, "publish": true, "anycast": true, "gather": true, "tap": true, "mail": true, "leader": true, "lead": true, "transfer": true,
		"resign": true, "elections": true, "balance": true, "evict": true, "server": true, "repair": true, "permissions": true,
		"doctor": true, "version": true,
	}
	missing := maps.Clone(want)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s: Short %q, Example %q; want both", c.CommandPath(), c.Short, c.Example)
		}
		for line := range strings.SplitSeq(c.Example, "\n") {
			if !strings.Contains(line, "fabric-node ") || !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: example %q does not run fabric-node, indented", c.CommandPath(), line)
			}
		}
		if c.HasParent() {
			delete(missing, c.Name())
			if c.Parent() == c.Root() && c.GroupID == "" || c.Args == nil || c.RunE == nil {
				t.Errorf("%s lacks a group, a check of its arguments or code", c.CommandPath())
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(&app{}))
	if len(missing) > 0 {
		t.Errorf("commands missing: %v", missing)
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"ttl", "tll", 1}, {"clustr", "cluster", 1}, {"env", "vne", 2}, {"output", "input", 3}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := distance(tt.b, tt.a); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.b, tt.a, got, tt.want)
		}
	}
}

func TestStringMap(t *testing.T) {
	var m stringMap
	for _, s := range []string{"zone=a", "list=a,b", "eq=a=b", "empty="} {
		if err := m.Set(s); err != nil {
			t.Errorf("Set(%q): %v", s, err)
		}
	}
	want := map[string]string{"zone": "a", "list": "a,b", "eq": "a=b", "empty": ""}
	if !maps.Equal(m, want) {
		t.Errorf("got %v, want %v", m, want)
	}
	for _, s := range []string{"", "zone", "=a"} {
		if err := m.Set(s); err == nil {
			t.Errorf("Set(%q): no error", s)
		}
	}
}

func TestExitErrorIsFound(t *testing.T) {
	err := asUsage(errors.New("boom"), "fabric-node x")
	e, ok := errors.AsType[*exitError](err)
	if !ok || e.code != exitUsage || e.hint != "see: fabric-node x --help" {
		t.Errorf("asUsage: %#v", err)
	}
}

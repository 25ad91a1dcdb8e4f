package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

func TestExitCode(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("boom"), 1},
		{usagef("bad"), 2},
		{&fabric.NameError{Field: "pid", Name: "a.b"}, 2},
		{&fabric.ConfigError{Field: "Lease", Reason: "too short"}, 2},
		{fabric.ErrTooLarge, 2},
		{&election.ConfigError{Field: "Grace", Reason: "too long"}, 2},
		{&balance.ConfigError{Field: "first", Reason: "too large"}, 2},
		{fmt.Errorf("start: %w", embedded.ErrConfig), 2},
		{embedded.ErrUnprotected, 2},
		{embedded.ErrStore, 2},
		{embedded.ErrAddrInUse, 1},
		{embedded.ErrStoreInUse, 1},
		{fabric.ErrConnect, 3},
		{fabric.ErrNoJetStream, 3},
		{fabric.ErrOldServer, 3},
		{&fabric.PermissionError{Op: "publish", Subject: "a"}, 3},
		{fabric.ErrNoPeer, 4},
		{fabric.ErrUnreachable, 4},
		{election.ErrNoLeader, 4},
		{context.DeadlineExceeded, 5},
		{&fabric.PIDInUseError{PID: "a"}, 1},
		{&fabric.RemoteError{PID: "a", Message: "no"}, 1},
		{&exitError{code: exitLost, err: election.ErrLost}, 75},
		{&exitError{code: 42}, 42},
		{signalError{syscall.SIGINT}, 130},
		{signalError{syscall.SIGTERM}, 143},
		{syscall.EPIPE, 141},
		{fmt.Errorf("%w: %w", fabric.ErrConnect, context.DeadlineExceeded), 3},
		{fmt.Errorf("send to a: %w: %w", fabric.ErrNoPeer, context.DeadlineExceeded), 4},
		{errors.Join(nil, fabric.ErrNoPeer), 4},
	} {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("exitCode(%v) = %d, want %d", tt.err, got, tt.want)
		}
		if tt.err != nil {
			if got := exitCode(fmt.Errorf("wrapped: %w", tt.err)); got != tt.want {
				t.Errorf("exitCode(wrapped %v) = %d, want %d", tt.err, got, tt.want)
			}
		}
	}
}

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		name           string
		err            error
		output         string
		hideJSON       bool
		stdout, stderr string
	}{
		{name: "none"},
		{name: "silent", err: &exitError{code: 3}, output: "json"},
		{name: "signal", err: signalError{syscall.SIGINT}, output: "json"},
		{name: "pipe", err: syscall.EPIPE},
		{name: "text", err: errors.New("boom"), stderr: "error: boom\n"},
		{
			name: "hint", err: fmt.Errorf("send to x: %w", fabric.ErrNoPeer),
			stderr: "error: send to x: fabric: no such peer\nhint:  see who is here: fabric-node members -k shop -e dev\n",
		},
		{
			name: "object", err: usagef("bad <x>").see("fabric-node x"), output: "json",
			stdout: `{"error":{"code":2,"message":"bad <x>","hint":"see: fabric-node x"}}` + "\n",
			stderr: "error: bad <x>\nhint:  see: fabric-node x\n",
		},
		{
			name: "no hint", err: errors.New("boom"), output: "ndjson",
			stdout: `{"error":{"code":1,"message":"boom"}}` + "\n", stderr: "error: boom\n",
		},
		{name: "wrapped command", err: errors.New("boom"), output: "json", hideJSON: true, stderr: "error: boom\n"},
		{
			name: "secret", err: fmt.Errorf("dial nats://u:pw@h: no"), output: "json",
			stdout: `{"error":{"code":1,"message":"dial nats://***@h: no"}}` + "\n", stderr: "error: dial nats://***@h: no\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			a := &app{stdout: &stdout, stderr: &stderr, told: &stderr, started: true, hideJSON: tt.hideJSON}
			a.opts = options{cluster: "shop", env: "dev", output: tt.output}
			if got, want := a.report(tt.err, nil), exitCode(tt.err); got != want {
				t.Errorf("code %d, want %d", got, want)
			}
			if stdout.String() != tt.stdout || stderr.String() != tt.stderr {
				t.Errorf("stdout %q, want %q\nstderr %q, want %q", &stdout, tt.stdout, &stderr, tt.stderr)
			}
		})
	}
}

// Every error that a user meets comes with what to run next.
func TestHints(t *testing.T) {
	a := &app{opts: options{cluster: "shop", env: "dev"}}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fabric.ErrConnect, "fabric-node server"},
		{fabric.ErrConnect, "--embedded"},
		{fabric.ErrConnect, "-s URL"},
		{fabric.ErrNoJetStream, "nats-server -js"},
		{fabric.ErrOldServer, "2.11"},
		{fabric.ErrNoPeer, "fabric-node members -k shop -e dev"},
		{fabric.ErrUnreachable, "fabric-node members -k shop -e dev"},
		{&fabric.PIDInUseError{PID: "x"}, "--pid"},
		{&balance.ConfigError{Field: "total"}, "-T (total)"},
		{&balance.ConfigError{Field: "Workers"}, "-n (workers)"},
		{balance.ErrMismatch, "--barrier"},
		{&fabric.ConfigError{Field: "Lease"}, "--ttl"},
		{context.DeadlineExceeded, "--timeout"},
		{context.DeadlineExceeded, "fabric-node doctor -k shop -e dev"},
		{fabric.ErrPermission, "allow"},
		{nats.ErrNoServers, "-s URL"},
		{embedded.ErrUnprotected, "--tls-cert"},
		{embedded.ErrAddrInUse, "--addr"},
		{embedded.ErrStoreInUse, "--store"},
	} {
		if got := a.hint(fmt.Errorf("x: %w", tt.err)); !strings.Contains(got, tt.want) {
			t.Errorf("hint(%v) = %q, want %q in it", tt.err, got, tt.want)
		}
	}
}

// The error object appears also when the flags could not be parsed to their end.
func TestWantsJSON(t *testing.T) {
	for _, tt := range []struct {
		env, args string
		want      bool
	}{
		{"", "members", false},
		{"", "members --bogus -o json", true},
		{"", "members -o ndjson --bogus", true},
		{"", "members -ojson", true},
		{"", "members --output=json", true},
		{"", "members --output json", true},
		{"", "members -o table", false},
		{"", "members -o", false},
		{"", "lead x -- cmd -o json", false},
		{"json", "members --bogus", true},
		{"json", "members --bogus -o table", false},
	} {
		t.Setenv("FABRIC_OUTPUT", tt.env)
		if got := (&app{}).wantsJSON(strings.Fields(tt.args)); got != tt.want {
			t.Errorf("wantsJSON(%q) with FABRIC_OUTPUT=%q = %v, want %v", tt.args, tt.env, got, tt.want)
		}
	}
}

//go:build unix

package main

import (
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commandLines returns those of all processes of this machine that contain text.
func commandLines(t *testing.T, text string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if line, err := os.ReadFile(file); err == nil && bytes.Contains(line, []byte(text)) { // else it has ended
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// TestNoSecretOnCommandLines: while commands run, and what they start, no process has a
// secret on its command line, however it was given but there.
func TestNoSecretOnCommandLines(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/cmdline"); err != nil {
		t.Skip("SKIPPED: this system does not show the command lines of processes in /proc")
	}
	secret := rand.Text()
	addr := natsServer(t, &server.Options{JetStream: true, Username: "u", Password: secret})
	home := contextHome(t, "prod", `{"url":"nats://`+addr+`","user":"u","password":"`+secret+`"}`)
	ways := map[string]struct{ env, args []string }{
		"url":      {[]string{"FABRIC_SERVER=nats://u:" + secret + "@" + addr}, nil},
		"password": {[]string{"NATS_USER=u", "NATS_PASSWORD=" + secret}, []string{"-s", addr}},
		"context":  {[]string{"XDG_CONFIG_HOME=" + home}, []string{"--context", "prod"}},
	}
	// Each says something when it runs, and what it starts does.
	commands := map[string]struct {
		args []string
		says string
	}{
		"run":     {[]string{"run", "--elect", "e"}, "joined"},
		"lead":    {[]string{"lead", "x", "--", "sh", "-c", "echo begun; sleep 60"}, "begun"},
		"balance": {[]string{"balance", "-n", "2", "--", "sh", "-c", "echo begun; sleep 60"}, "begun"},
	}
	for way, given := range ways {
		for name, command := range commands {
			t.Run(way+" "+name, func(t *testing.T) {
				t.Parallel()
				cmd := exec.Command("fabric-node", slices.Concat(command.args[:1], given.args, command.args[1:])...)
				cmd.Env = append(append(os.Environ(), "FABRIC_CLUSTER="+way), given.env...)
				var out output
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				defer func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() }()
				for deadline := time.Now().Add(patience); ; {
					if lines := commandLines(t, secret); len(lines) > 0 {
						t.Fatalf("the secret is on a command line: %q", lines)
					}
					if strings.Contains(out.String(), command.says) {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("it does not run: %s", out.String())
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
	}
	t.Run("seen", func(t *testing.T) { // what is there is found
		cmd := exec.Command("sh", "-c", "read x", secret)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { in.Close(); cmd.Wait() }()
		if len(commandLines(t, secret)) == 0 {
			t.Error("a secret on a command line is not noticed")
		}
	})
}

// secretive are the names of flags that could take a secret, and named what the
// usage says of one that takes the name of something instead.
var (
	secretive = regexp.MustCompile(`pass|secret|token|seed|jwt|cred|nkey|key|auth|login`)
	named     = regexp.MustCompile("`(file|variable)`|public `key`")
)

// TestFlagsTakeNoSecrets: flags name files and variables in which secrets are.
func TestFlagsTakeNoSecrets(t *testing.T) {
	seen := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !secretive.MatchString(f.Name) || f.Value.Type() == "bool" {
				return
			}
			seen++
			if !named.MatchString(f.Usage) {
				t.Errorf("%s --%s: %q does not say that it takes a file, a variable or a public key", cmd.CommandPath(), f.Name, f.Usage)
			}
		})
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(newRoot(&app{}))
	if seen < 5 {
		t.Errorf("%d flags were looked at: some have other names now", seen)
	}
}

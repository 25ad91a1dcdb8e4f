package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
)

// canary stands for a secret of every kind.
const canary = "canary7xq"

// No way of giving a secret to the program shows it again, whatever command fails
// with it, on whatever server, in whatever format.
func TestSecretsAreNotPrinted(t *testing.T) {
	locked := natsServer(t, &server.Options{JetStream: true, Username: "u", Password: "right"})
	file := func(t *testing.T, text string) string {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ways := map[string]func(t *testing.T, addr string) []string{
		"url":       func(_ *testing.T, addr string) []string { return []string{"-s", "nats://u:" + canary + "@" + addr} },
		"url token": func(_ *testing.T, addr string) []string { return []string{"-s", "nats://" + canary + "@" + addr} },
		"bad url": func(_ *testing.T, addr string) []string {
			return []string{"-s", "nats://u:" + canary + " @" + addr + ",nats://u:" + canary}
		},
		"FABRIC_SERVER": func(t *testing.T, addr string) []string {
			t.Setenv("FABRIC_SERVER", "nats://u:"+canary+"@"+addr)
			return nil
		},
		"NATS_PASSWORD": func(t *testing.T, addr string) []string {
			t.Setenv("NATS_USER", "u")
			t.Setenv("NATS_PASSWORD", canary)
			return []string{"-s", addr}
		},
		"FABRIC_CONTROL_PASSWORD": func(t *testing.T, addr string) []string {
			t.Setenv("FABRIC_CONTROL_USER", "u")
			t.Setenv("FABRIC_CONTROL_PASSWORD", canary)
			return []string{"-s", addr}
		},
		"NATS_TOKEN": func(t *testing.T, addr string) []string {
			t.Setenv("NATS_TOKEN", canary)
			return []string{"-s", addr}
		},
		"NATS_SEED": func(t *testing.T, addr string) []string {
			t.Setenv("NATS_JWT", "e30."+canary)
			t.Setenv("NATS_SEED", "SU"+canary)
			return []string{"-s", addr}
		},
		"NATS_CREDS": func(t *testing.T, addr string) []string {
			t.Setenv("NATS_CREDS", file(t, "-----BEGIN NATS USER JWT-----\n"+canary+"\n------END NATS USER JWT------\n-----BEGIN USER NKEY SEED-----\n"+canary+"\n------END USER NKEY SEED------\n"))
			return []string{"-s", addr}
		},
		"NATS_NKEY": func(t *testing.T, addr string) []string {
			t.Setenv("NATS_NKEY", file(t, "SU"+canary))
			return []string{"-s", addr}
		},
		"NATS_SOCKS_PROXY": func(t *testing.T, addr string) []string {
			t.Setenv("NATS_SOCKS_PROXY", "socks5://u:"+canary+"@127.0.0.1:1")
			return []string{"-s", addr}
		},
		"context": func(t *testing.T, addr string) []string {
			writeContext(t, "prod", `{"url":"nats://`+addr+`","user":"u","password":"`+canary+`"}`)
			return []string{"--context", "prod"}
		},
	}
	commands := [][]string{
		{"run"}, {"members"}, {"watch"}, {"send", "a", "x"}, {"broadcast", "x"}, {"request", "a", "x"}, {"publish", "t", "x"}, {"anycast", "s", "x"}, {"gather", "x"}, {"leader", "e"},
		{"lead", "e", "--", "true"}, {"balance"}, {"doctor"}, {"doctor", "--nagios"},
	}
	for way, give := range ways {
		for name, addr := range map[string]string{"refused": "127.0.0.1:1", "locked": locked} {
			t.Run(way+" "+name, func(t *testing.T) {
				given := give(t, addr)
				for i, command := range commands {
					args := append([]string{command[0], "-v", "--timeout", "50ms"}, given...)
					if i%2 == 0 {
						args = append(args, "-o", "json")
					}
					code, stdout, stderr := runCLI(t, append(args, command[1:]...)...)
					if code == exitOK {
						t.Errorf("%v: exit code 0: the server is not locked", command)
					}
					if strings.Contains(stdout+stderr, canary) {
						t.Errorf("%v: the secret is shown\nstdout %s\nstderr %s", command, stdout, stderr)
					}
				}
			})
		}
	}
	t.Run("signing key", func(t *testing.T) {
		for _, text := range []string{canary, "SA" + canary, "-----BEGIN ACCOUNT NKEY SEED-----\n" + canary + "\n------END ACCOUNT NKEY SEED------\n"} {
			code, stdout, stderr := runCLI(t, "permissions", "-i", "a", "--format", "creds", "--signing-key", file(t, text))
			if code == exitOK || strings.Contains(stdout+stderr, canary) {
				t.Errorf("exit code %d\nstdout %s\nstderr %s", code, stdout, stderr)
			}
		}
	})
}

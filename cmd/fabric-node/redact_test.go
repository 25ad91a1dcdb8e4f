package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
	cleanEnv(t)
	a := &app{}
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"plain text: 5 @ home", "plain text: 5 @ home"},
		{"nats://host:4222", "nats://host:4222"},
		{"nats://[::1]:4222", "nats://[::1]:4222"},
		{"nats://a:4222,nats://b:4222", "nats://a:4222,nats://b:4222"},
		{"dial nats://a:4222: connection refused", "dial nats://a:4222: connection refused"},
		{"nats://user:secret@host:4222", "nats://***@host:4222"},
		{"nats://TOKENsecret@host", "nats://***@host"},
		{"nats://u:secret@a,nats://v:secret@b", "nats://***@a,nats://***@b"},
		{"nats://u:secret@a,v:secret@b", "nats://***@b"},
		{"nats://u:sec,secret@a:4222", "nats://***@a:4222"},
		{"nats://u:secret@x@a", "nats://***@a"},
		{"nats://u:secret/x@a", "nats://***@a"},
		{"nats://u:secret x@a", "nats://***@a"},
		{`parse "nats://u:secret%zz@a": invalid URL escape`, `parse "nats://***@a": invalid URL escape`},
		{"nats://user:secret", "nats://user:***"},
		{"nats://user:1secret", "nats://user:***"},
		{"tls://u:secret@a wss://v:secret@b/x", "tls://***@a wss://***@b/x"},
		{"socks5://u:secret@a:1080", "socks5://***@a:1080"},
	} {
		if got := a.redact(tt.in); got != tt.want {
			t.Errorf("redact(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestRedactKnownSecrets(t *testing.T) {
	cleanEnv(t)
	t.Setenv("NATS_PASSWORD", "hunter22")
	t.Setenv("NATS_URL", "nats://u:fromurl@h")
	t.Setenv("NATS_TOKEN", "abc") // too short to black out
	a := &app{opts: options{server: "nats://tok3n@h, nats://u:p4ssword@h2"}}
	got := a.redact("hunter22 fromurl abc tok3n p4ssword alphabet")
	if want := "*** *** abc *** *** alphabet"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCheckServers(t *testing.T) {
	for _, ok := range []string{
		"", "nats://a", "a", "a:4222", "127.0.0.1", "127.0.0.1:4222", "nats://u:p@a:4222", "tls://a",
		"ws://a:80", "wss://a", "a,b,nats://c", "nats://a, nats://b", "u:p@a:4222", "[::1]:4222",
	} {
		if err := checkServers(ok); err != nil {
			t.Errorf("checkServers(%q): %v", ok, err)
		}
	}
	for _, bad := range []string{
		",", "nats://", "http://a", "nats://u:secret@", "nats://u:secret@a:port", "nats://u:secret@a b",
		"nats://u:sec%zzret@a", "nats://u:secret", "u:secret", "nats://a,nats://u:secret@:bad", "nats://u:secret@a\x7f",
		"u:secret@a:x,nats://b",
	} {
		err := checkServers(bad)
		if err == nil {
			t.Errorf("checkServers(%q): no error", bad)
			continue
		}
		if strings.Contains(err.Error(), "secret") || exitCode(err) != exitUsage {
			t.Errorf("checkServers(%q): %v, exit code %d", bad, err, exitCode(err))
		}
	}
}

// Whatever the shape of the list, no piece of the password stays.
func FuzzRedactServer(f *testing.F) {
	for _, s := range []string{"nats://u:%s@h", "u:%s@h", "nats://a,u:%s@h", "nats://%s@h:4222", "nats://u:%s@h,tls://v:%s@i"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, form string) {
		if strings.Count(form, "%") != strings.Count(form, "%s") || !strings.Contains(form, "@") ||
			strings.LastIndex(form, "%s") > strings.LastIndex(form, "@") {
			t.Skip("no URL with a password in its user part")
		}
		for _, password := range []string{"hunter2", "hunter,2", "hunter@2", "hunter/2", "hunter 2", "hunter:2"} {
			list := strings.ReplaceAll(form, "%s", password)
			if strings.Contains(strings.ReplaceAll(form, "%s", ""), "hunter") {
				continue
			}
			if got := redactServer(list); strings.Contains(got, "hunter") {
				t.Errorf("redactServer(%q) = %q", list, got)
			}
			if err := checkServers(list); err != nil && strings.Contains(fmt.Sprint(err), "hunter") {
				t.Errorf("checkServers(%q) = %v", list, err)
			}
		}
	})
}

package main

import (
	"strings"
	"testing"
)

func TestRedact(t *testing.T) {
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
		if shown := (&app{}).redact(err.Error()); !strings.HasSuffix(shown, " of the form nats://host:4222") {
			t.Errorf("checkServers(%q) is shown as %q, which does not say the form", bad, shown)
		}
	}
}

func TestRedactServer(t *testing.T) {
	for in, want := range map[string]string{
		"":                               "",
		"a:4222":                         "a:4222",
		"nats://a,b":                     "nats://a,b",
		"nats://a:1, nats://u:p@b:2":     "nats://a:1,nats://***@b:2",
		"nats://u:p@a,nats://v:q@b":      "nats://***@a,nats://***@b",
		"nats://token@a":                 "nats://***@a",
		"u:p@a":                          "***@a",
		"nats://a,u:p@b":                 "nats://***@b",
		"nats://u:1,secret,2@b":          "nats://***@b",
		"://u:secret@b":                  "***@b",
		"nats://u:a://secret@b":          "nats://***@b",
		"nats://u:secret":                "nats://u:***",
		"nats://u:sec ret":               "nats://u:***",
		"http://a":                       "http://a",
		"nats://u:secret@a:port,nats://": "nats://***@a:port,nats://",
	} {
		if got := redactServer(in); got != want {
			t.Errorf("redactServer(%q) = %q, want %q", in, got, want)
		}
	}
}

// No piece of a password stays, whatever stands before and after it.
func FuzzRedactServer(f *testing.F) {
	for _, s := range []string{"", "@", ",", "/", " ", ":", "%", "1,", "]", "\x00", "#", "?"} {
		f.Add(s, s)
		f.Add(s, "")
		f.Add("", s)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		if strings.Contains(before+after, "://") {
			t.Skip("a list of other servers, to nats.go as well")
		}
		password := before + "hunter" + after
		for _, form := range []string{"nats://u:%s@h", "u:%s@h", "nats://a,nats://u:%s@h:4222", "nats://%s@h,tls://i"} {
			list := strings.Replace(form, "%s", password, 1)
			if got := redactServer(list); strings.Contains(got, "hunter") {
				t.Errorf("redactServer(%q) = %q", list, got)
			}
			if err := checkServers(list); err != nil && strings.Contains(err.Error(), "hunter") {
				t.Errorf("checkServers(%q) = %v", list, err)
			}
			if got := redactURLs("dial " + list + ": refused"); strings.HasPrefix(form, "nats") && strings.Contains(got, "hunter") {
				t.Errorf("redactURLs(%q) = %q", list, got)
			}
		}
	})
}

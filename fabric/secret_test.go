package fabric

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestRedactURL(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"nats://a:4222":                    "nats://a:4222",
		"a":                                "nats://a",
		"nats://u:canary@a:4222":           "nats://***@a:4222",
		"nats://canary@a":                  "nats://***@a",
		"u:canary@a":                       "nats://***@a",
		"tls://a:1, nats://u:canary@b:2":   "tls://a:1,nats://***@b:2",
		"nats://u:canary,canary2@b:2":      "***",
		"nats://u:can%zzary@b":             "***",
		"nats://u:ca nary@b":               "nats://***@b",
		"nats://a:1/canary?canary#canary":  "nats://a:1",
		"nats://u:canary@b@c":              "***",
		"nats://:canary@":                  "***",
		"nats://u:x,nats://v:canary@a:422": "***",
	} {
		if got := redactURL(in); got != want {
			t.Errorf("redactURL(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzConfigIsNotPrinted(f *testing.F) {
	for _, s := range []string{"", "@", ",", "/", " ", ":", "%", "1,", "]", "\x00", "#", "?", "//", "a,b"} {
		f.Add(s, s)
		f.Add(s, "")
		f.Add("", s)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		if strings.Contains(before+after, "://") || strings.ContainsAny(after, "@") {
			t.Skip("a list of other servers, to nats.go as well")
		}
		for _, form := range []string{"nats://u:%s@h", "nats://a:1,nats://u:%s@h:4222", "nats://%s@h,tls://i:2"} {
			c := Config{Cluster: "c", URL: strings.Replace(form, "%s", before+"canary"+after, 1)}
			data, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			slog.New(slog.NewTextHandler(&log, nil)).Info("", "cfg", c)
			_, checked := c.withDefaults()
			text := fmt.Sprintf("%v %+v %#v %s %q %s %s %v", c, c, c, c, c, data, log.String(), checked)
			if strings.Contains(text, "canary") {
				t.Errorf("%q is printed as %s", c.URL, text)
			}
		}
	})
}

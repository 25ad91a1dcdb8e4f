package kv

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Some settings cannot be wrong alone on a server of today; they are checked all
// the same.
func TestCheckNamesTheSetting(t *testing.T) {
	b := New(nil, Config{Name: "fab_a_b", Feed: "fab.a.b.kv", Logger: slog.New(slog.DiscardHandler)})
	if err := b.check(b.config(1, time.Now())); err != nil {
		t.Errorf("check of its own config = %v", err)
	}
	if err := b.check(b.config(3, time.Time{})); err != nil {
		t.Errorf("check of one with other replicas and age = %v", err)
	}
	for field, change := range map[string]func(*jetstream.StreamConfig){
		"storage":                   func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"subjects":                  func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, "x") },
		"sources":                   func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{Name: "x"}} },
		"mirror":                    func(c *jetstream.StreamConfig) { c.Mirror = &jetstream.StreamSource{Name: "x"} },
		"max_msgs_per_subject":      func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 2 },
		"max_age":                   func(c *jetstream.StreamConfig) { c.MaxAge = time.Second },
		"max_msgs":                  func(c *jetstream.StreamConfig) { c.MaxMsgs = 1 },
		"discard":                   func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"deny_delete":               func(c *jetstream.StreamConfig) { c.DenyDelete = false },
		"deny_purge":                func(c *jetstream.StreamConfig) { c.DenyPurge = false },
		"allow_rollup_hdrs":         func(c *jetstream.StreamConfig) { c.AllowRollup = true },
		"allow_direct":              func(c *jetstream.StreamConfig) { c.AllowDirect = true },
		"allow_msg_ttl":             func(c *jetstream.StreamConfig) { c.AllowMsgTTL = false },
		"subject_delete_marker_ttl": func(c *jetstream.StreamConfig) { c.SubjectDeleteMarkerTTL = time.Second },
		"sealed":                    func(c *jetstream.StreamConfig) { c.Sealed = true },
		"no_ack":                    func(c *jetstream.StreamConfig) { c.NoAck = true },
		"republish":                 func(c *jetstream.StreamConfig) { c.RePublish.HeadersOnly = true },
	} {
		c := b.config(1, time.Now())
		change(&c)
		if e, ok := errors.AsType[*ConfigError](b.check(c)); !ok || e.Field != field {
			t.Errorf("check with a changed %s = %v, want a *ConfigError about it", field, b.check(c))
		}
	}
}

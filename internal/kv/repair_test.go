package kv_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A Repair that was given up while it waited for the copies is finished by the next one,
// although that finds nothing to change.
func TestRepairAwaitsCopiesAgain(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		_, nc, _ := opened(t, s)
		var current atomic.Bool
		sub, err := nc.Subscribe("$JS.copies.API.>", func(m *nats.Msg) {
			go func() { // the bucket, as if it had three copies
				answer, err := nc.Request("$JS."+strings.TrimPrefix(m.Subject, "$JS.copies."), m.Data, time.Second)
				if err != nil {
					return
				}
				var info map[string]any
				json.Unmarshal(answer.Data, &info)
				if config, ok := info["config"].(map[string]any); ok {
					config["num_replicas"] = 3
					copies := map[string]any{"name": "x", "current": current.Load()}
					info["cluster"] = map[string]any{"replicas": []any{copies, copies}}
				}
				data, _ := json.Marshal(info)
				m.Respond(data)
			}()
		})
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Unsubscribe()
		b := handle(t, nc, func(c *kv.Config) { c.Domain = "copies" })
		if found, err := b.Repair(within(t, time.Second), 3, true); len(found) != 0 || err != nil {
			t.Errorf("dry Repair = %v, %v, want nothing, at once", found, err)
		}
		if found, err := b.Repair(within(t, time.Second), 3, false); len(found) != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Repair = %v, %v, want to wait for the copies until its context ends", found, err)
		}
		time.AfterFunc(2*time.Second, func() { current.Store(true) })
		began := time.Now()
		if found, err := b.Repair(within(t, time.Minute), 3, false); len(found) != 0 || err != nil {
			t.Errorf("Repair = %v, %v, want nothing", found, err)
		}
		if took := time.Since(began); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("Repair returned after %v, want when the copies are current, after 2 s", took)
		}
	})
}

// What the fabric does not check is the operator's.
func TestRepairKeepsTheOperatorsSettings(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		b, nc, _ := opened(t, s)
		config := api(t, nc, "STREAM.INFO."+stream, nil)["config"].(map[string]any)
		theirs := map[string]any{
			"max_bytes": float64(1 << 20), "max_msg_size": float64(1 << 10), "description": "theirs", "compression": "s2",
			"duplicate_window": float64(time.Minute),
		}
		for field, value := range theirs {
			config[field] = value
		}
		config["allow_direct"], config["max_age"], config["republish"] = true, float64(time.Hour), nil
		if resp := api(t, nc, "STREAM.UPDATE."+stream, config); resp["error"] != nil {
			t.Fatal(resp["error"])
		}
		if found, err := b.Repair(within(t, time.Minute), 0, false); len(found) != 3 || err != nil {
			t.Errorf("Repair = %v, %v, want 3 differences", found, err)
		}
		config = api(t, nc, "STREAM.INFO."+stream, nil)["config"].(map[string]any)
		for field, want := range theirs {
			if got := config[field]; got != want {
				t.Errorf("%s = %v after Repair, want %v", field, got, want)
			}
		}
		if _, found, err := b.Inspect(t.Context()); len(found) != 0 || err != nil {
			t.Errorf("after Repair the bucket differs in %v, %v", found, err)
		}
	})
}

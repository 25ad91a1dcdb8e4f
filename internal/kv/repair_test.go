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

package mail

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestOpenBesideAnother: a server of a cluster may refuse to make a stream that another
// process has just made, and not find it for a moment.
func TestOpenBesideAnother(t *testing.T) {
	s := natstest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cfg := Config{Name: "fab_c_e", Mail: "m.*.*", Dead: "x.*.*", Replicas: 1, Bytes: 1 << 20, Quota: 10, Age: Window, Logger: slog.New(slog.DiscardHandler)}
	if err := New(s.Connect(), cfg).Open(ctx, true); err != nil {
		t.Fatal(err)
	}
	var infos, creates atomic.Int64
	s.Desk(func(m *nats.Msg) bool {
		switch {
		case strings.HasSuffix(m.Subject, "STREAM.CREATE.fab_c_e_mail"):
			creates.Add(1)
		case strings.HasSuffix(m.Subject, "STREAM.INFO.fab_c_e_mail") && infos.Add(1) <= 2:
			_ = m.Respond([]byte(`{"error":{"code":404,"err_code":10059,"description":"stream not found"}}`))
			return true
		}
		return false
	})
	cfg.Domain = natstest.DeskDomain
	if err := New(s.Connect(), cfg).Open(ctx, true); err != nil {
		t.Errorf("Open: %v", err)
	}
	if infos.Load() < 3 || creates.Load() != 1 {
		t.Errorf("%d times looked for, %d times made", infos.Load(), creates.Load())
	}
}

package embedded_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/embedded"
)

// notFormed awaits a cluster that does not form, and returns what is wrong with the error
// that says so. Whoever does not answer in half a second is said to be away: what a
// standstill of this process makes of that must be right the second time, or the third.
func notFormed(t *testing.T, s *embedded.Server, wait time.Duration, fits func(text string) bool) (err error) {
	t.Helper()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		err = s.AwaitCluster(ctx)
		cancel()
		switch {
		case err == nil:
			return errors.New("it formed")
		case !errors.Is(err, embedded.ErrNotFormed) || !errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("another error: %w", err)
		case fits(err.Error()):
			return nil
		}
	}
	return err
}

// TestFormation: two of three wait and say for whom; the third completes them, and
// after that two are enough.
func TestFormation(t *testing.T) {
	t.Parallel()
	cfgs := memberConfigs(t)
	var srvs []*embedded.Server
	for _, cfg := range cfgs[:2] {
		srvs = append(srvs, start(t, cfg))
	}
	err := notFormed(t, srvs[0], 2*time.Second, func(text string) bool {
		return strings.Contains(text, "members at "+cfgs[2].Listen) && !strings.Contains(text, cfgs[1].Listen)
	})
	if err != nil {
		t.Errorf("two of three: %v, want ErrNotFormed that names %s alone", err, cfgs[2].Listen)
	}
	srvs = append(srvs, start(t, cfgs[2]))
	for _, s := range srvs {
		awaitCluster(t, s)
	}
	kv := replicated(t, dial(t, urls(srvs)))
	put(t, kv, "three")
	if err := srvs[2].Shutdown(testContext(t)); err != nil {
		t.Fatal(err)
	}
	put(t, kv, "two")
}

// heard is a log that calls said when a server says for whom it waits.
type heard struct {
	bytes.Buffer
	said func()
}

func (h *heard) Write(record []byte) (int, error) {
	if bytes.Contains(record, []byte("waiting for the cluster")) {
		h.said()
	}
	return h.Buffer.Write(record)
}

// TestSaysForWhomItWaits reads the log of a member whose cluster does not form.
func TestSaysForWhomItWaits(t *testing.T) {
	t.Parallel()
	cfgs := memberConfigs(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out := heard{said: cancel} // slog's handlers write one record at a time
	cfgs[0].Logger = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	srv := start(t, cfgs[0])
	if err := srv.AwaitCluster(ctx); !errors.Is(err, embedded.ErrNotFormed) {
		t.Fatal(err)
	}
	if err := srv.Shutdown(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if log := out.String(); !strings.Contains(log, "waiting for the cluster") || !strings.Contains(log, cfgs[1].Listen+", "+cfgs[2].Listen) {
		t.Errorf("the log says nothing of %s and %s:\n%s", cfgs[1].Listen, cfgs[2].Listen, log)
	}
}

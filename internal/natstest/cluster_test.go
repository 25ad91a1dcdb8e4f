package natstest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// publish publishes to s.a until it is acknowledged.
func publish(t *testing.T, js jetstream.JetStream, data string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := js.Publish(ctx, "s.a", []byte(data))
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("publish %q: %v", data, err)
		}
	}
}

// awaitLast waits until the last message of s.a is want: a follower may answer, and it may
// not have it yet.
func awaitLast(t *testing.T, st jetstream.Stream, want string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		m, err := st.GetLastMsgForSubject(ctx, "s.a")
		cancel()
		if err == nil && string(m.Data) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("stream holds %+v, %v, want %q", m, err, want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestProcessesSurviveKillOfLeader(t *testing.T) {
	t.Parallel()
	c := StartProcesses(t, 3)
	if got := strings.Count(c.URL(), "nats://127.0.0.1:"); got != 3 || len(c.URLs()) != 3 {
		t.Fatalf("URL() = %q, want three addresses", c.URL())
	}
	js, st := newStream(t, c.Connect(FastOptions()...), 3)
	publish(t, js, "before")

	leader := c.LeaderOf("S")
	c.Kill(leader)
	c.Kill(leader) // harmless
	publish(t, js, "during")
	if got := c.LeaderOf("S"); got == leader {
		t.Errorf("member %d leads, and is dead", got)
	}
	if slices.Contains(c.running(), c.URLs()[leader]) {
		t.Errorf("member %d runs after Kill", leader)
	}

	c.Start(leader)
	c.WaitReady()
	info, err := st.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := len(info.Cluster.Replicas); got != 2 {
		t.Errorf("stream has %d followers, want 2", got)
	}

	// The one that was killed has what it missed: stop another.
	other := (leader + 1) % 3
	c.Stop(other)
	publish(t, js, "after")
	awaitLast(t, st, "after")
}

func TestClusterStepDown(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, 3)
	js, st := newStream(t, c.Connect(FastOptions()...), 3)
	publish(t, js, "x")
	before := c.LeaderOf("S")
	deadline := time.Now().Add(30 * time.Second)
	for c.LeaderOf("S") == before {
		if time.Now().After(deadline) {
			t.Fatalf("member %d leads for good", before)
		}
		c.StepDown("S")
	}
	c.Stop(before)
	c.Start(before)
	c.WaitReady()
	awaitLast(t, st, "x")
}

package natstest

import (
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats-server/v2/server/ats"
)

// Bubble runs f in a [synctest] bubble with a server of its own: JetStream on files,
// no listener. The server, its links and the connections it made are closed inside
// the bubble when f and the cleanups f registered are through, so a goroutine that
// f leaves behind fails the test.
//
// All f uses must be created in f; connections go through [Server.Connect],
// [Server.Provider] or a [Link], never through TCP, on which fake time does not
// advance.
func Bubble(t *testing.T, f func(t *testing.T, s *Server)) {
	t.Helper()
	dir := t.TempDir()

	// The server keeps one ticker per process for access times. Born in a bubble
	// it would be the one goroutine that never blocks durably.
	ats.Register()
	defer ats.Unregister()

	FakeTime(t, func(t *testing.T) {
		s := newServer(t, &server.Options{DontListen: true, StoreDir: dir})
		f(t, s)
	})
}

// FakeTime is [synctest.Test], on one processor while the race detector is on: the
// runtime gives all timers of a bubble one context of the detector, and two of them
// that fire on two processors at once corrupt it (https://go.dev/issue/78156). Timers
// that nats.go keeps for later do not pass from one bubble to another.
func FakeTime(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	emptyPools()
	defer emptyPools()
	if Race {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	synctest.Test(t, f)
}

// emptyPools drops what sync.Pools hold, which takes two collections: a timer made
// in one bubble and reused in another, or outside, is a fatal error of the runtime.
func emptyPools() {
	runtime.GC()
	runtime.GC()
}

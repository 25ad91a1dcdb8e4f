package fabric

import (
	"fmt"
	"log/slog"

	"github.com/nats-io/nats.go"
)

// The oldest servers of their lines that have the fixes which a fabric's safety rests
// on: 2.12.7, and 2.14.0 of those after it. Older ones with JetStream API level 1 are
// warned about, those below it refused.
const oldestServer = "2.12.7 or 2.14.0"

// belowFloor reports whether a server's version is older than its line's floor. One
// that it does not understand is not.
func belowFloor(version string) bool {
	var major, minor, patch int
	if n, _ := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); n != 3 {
		return false
	}
	switch {
	case major != 2:
		return major < 2
	case minor == 12:
		return patch < 7
	}
	return minor < 14
}

// warnOld says that the server is older than it should be. Of a cluster it sees the
// one that it is connected to.
func warnOld(nc *nats.Conn, log *slog.Logger) {
	if v := nc.ConnectedServerVersion(); belowFloor(v) {
		log.Warn("the server is old: it lacks fixes that a fabric relies on", "server", v, "want", oldestServer)
	}
}

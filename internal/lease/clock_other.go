//go:build !linux

package lease

import "time"

// SystemClock knows of no suspension here; the wall clock is what counts it.
func SystemClock() time.Duration { return 0 }

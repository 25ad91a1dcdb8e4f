package lease

import (
	"syscall"
	"time"
	"unsafe"
)

// SystemClock is CLOCK_BOOTTIME minus CLOCK_MONOTONIC: see clock_gettime(2).
func SystemClock() time.Duration {
	const monotonic, boottime = 1, 7
	// Monotonic is read first: a delay between the two makes a lease look older.
	m := gettime(monotonic)
	return gettime(boottime) - m
}

func gettime(clock uintptr) time.Duration {
	var ts syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clock, uintptr(unsafe.Pointer(&ts)), 0)
	return time.Duration(ts.Nano())
}

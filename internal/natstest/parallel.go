package natstest

import "flag"

// Patient lets eight tests that call t.Parallel run at a time, if -parallel says nothing
// else: for a TestMain whose tests wait for leases and servers, not for processors.
func Patient() {
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err) // not in a test binary
	}
}

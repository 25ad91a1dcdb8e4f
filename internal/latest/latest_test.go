package latest

import (
	"sync"
	"testing"
)

func TestStoreWakesReaders(t *testing.T) {
	var v Value[int]
	got, changed := v.Load()
	if got != 0 {
		t.Fatalf("Load() = %d, want 0", got)
	}
	select {
	case <-changed:
		t.Fatal("changed before a Store")
	default:
	}
	v.Store(1)
	<-changed
	if got := v.Get(); got != 1 {
		t.Errorf("Get() = %d, want 1", got)
	}
}

// A reader that loads, waits and loads again ends on the last value, however
// reads and writes interleave.
func TestReaderEndsOnTheLastValue(t *testing.T) {
	var v Value[int]
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				got, changed := v.Load()
				if got == 1000 {
					return
				}
				<-changed
			}
		})
	}
	for i := range 1001 {
		v.Store(i)
	}
	wg.Wait()
}

//go:build unix

package tests

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// These loads have no flow control of their own: mode Reliable is that.

// TestRandomSends: five nodes make 100 000 sends to whomever, among them themselves
// not; vibhor1403/Raft's load.
func TestRandomSends(t *testing.T) {
	const total, size = 100_000, 5
	s := natstest.Start(t)
	nodes := joinMany(t, s.URL(), size)
	ctx := within(t, patience)
	report(t, nodes)
	var mu sync.Mutex // guards sent
	var sent [size][size]int
	var senders sync.WaitGroup
	done := make(chan struct{})
	for i, n := range nodes {
		senders.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			var mine [size]int
			for range total / size {
				to := (i + 1 + rnd.IntN(size-1)) % size
				if err := n.SendMsg(ctx, &fabric.Message{To: number(to), Mode: fabric.Reliable, Data: encode(mine[to])}); err != nil {
					t.Errorf("%d to %d: %v", i, to, err)
					return
				}
				mine[to]++
			}
			if err := n.Flush(ctx); err != nil {
				t.Errorf("Flush of %d: %v", i, err)
			}
			mu.Lock()
			defer mu.Unlock()
			sent[i] = mine
		})
	}
	go func() { senders.Wait(); close(done) }()
	var got [size][size]int
	all(t, nodes, func(to int, n *fabric.Node) error {
		receive, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			<-done // all is accepted: what the inbox still holds comes at once
			for n.Stats().Waiting > 0 && receive.Err() == nil {
				runtime.Gosched()
			}
			cancel()
		}()
		for {
			m, err := n.Receive(receive)
			if errors.Is(err, context.Canceled) && ctx.Err() == nil {
				return nil
			}
			if err != nil {
				return err
			}
			from := int(m.From[0] - '0')
			if k := decode(m); k != got[from][to] {
				return fmt.Errorf("%d received %d from %d, want %d", to, k, from, got[from][to])
			}
			got[from][to]++
		}
	})
	if got != sent {
		t.Errorf("sent %v\nreceived %v", sent, got)
	}
}

// TestReliableBroadcast is TestBroadcast in mode Reliable.
func TestReliableBroadcast(t *testing.T) {
	const count, size = 10_000, 5
	s := natstest.Start(t)
	nodes := joinMany(t, s.URL(), size)
	for _, n := range nodes { // it goes to the members of the sender's view
		awaitView(t, n, members(size))
	}
	ctx := within(t, patience)
	report(t, nodes)
	all(t, nodes, func(_ int, n *fabric.Node) error {
		sent := make(chan error, 1) // capacity 1: read once, by whom started it
		go func() {
			for i := range count {
				if err := n.SendMsg(ctx, &fabric.Message{To: fabric.Everyone, Mode: fabric.Reliable, Data: encode(i)}); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		return errors.Join(expect(ctx, n, size-1, count), <-sent)
	})
}

const (
	largeSize   = 10_000_000
	largeMemory = 256 // MiB
)

// TestLargeLoad: messages of 10 000 000 bytes from one process to another, each once,
// in order and whole, in a quarter of a gigabyte of memory at either end. ClusterTalk
// had this test with 5000 messages, switched off; -full runs it so.
func TestLargeLoad(t *testing.T) {
	count := 100
	if *full {
		count = 5000
	}
	s := natstest.Start(t)
	began := time.Now()
	receiver := enact(t, part{Role: "large-receiver", PID: "receiver", URL: s.URL(), Count: count})
	sender := enact(t, part{Role: "large-sender", PID: "sender", URL: s.URL(), Count: count})
	sender.wait()
	receiver.end()
	for _, a := range []*actor{sender, receiver} {
		peak := a.value("peak-MiB")
		t.Logf("%s: %d MiB at most", a.part.PID, peak)
		if peak == 0 || peak > largeMemory {
			t.Errorf("%s took %d MiB, want at most %d", a.part.PID, peak, largeMemory)
		}
	}
	t.Logf("%d messages of %d bytes in %v", count, largeSize, time.Since(began))
}

// content is what message i is.
func content(data []byte, i int) {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], uint64(i))
	_, _ = rand.NewChaCha8(seed).Read(data)
}

func sendLarge(ctx context.Context, n *fabric.Node, p part, _ <-chan struct{}) error {
	if _, err := viewOf(ctx, n, members(2)); err != nil { // the receiver may still be joining
		return err
	}
	data := make([]byte, largeSize)
	for i := range p.Count {
		content(data, i)
		if err := n.SendMsg(ctx, &fabric.Message{To: "receiver", Mode: fabric.Reliable, Data: data}); err != nil {
			return err
		}
	}
	defer sayPeak()
	return n.Flush(ctx)
}

// sayPeak tells the test the most memory that this process had. What the system tells the
// parent is no use: on Linux it is also that of the parent itself, before the exec.
func sayPeak() {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	peak := int(usage.Maxrss) >> 20 // in bytes, but on Linux
	if runtime.GOOS == "linux" {
		peak = 0
		status, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(status)) {
			if kib, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				_, _ = fmt.Sscan(kib, &peak)
				peak >>= 10
			}
		}
	}
	say("peak-MiB", peak)
}

func receiveLarge(ctx context.Context, n *fabric.Node, p part, stop <-chan struct{}) error {
	want := make([]byte, largeSize)
	for i := range p.Count {
		m, err := n.Receive(ctx)
		if err != nil {
			return err
		}
		if content(want, i); !bytes.Equal(m.Data, want) {
			return fmt.Errorf("message %d is not what was sent: %d bytes", i, len(m.Data))
		}
	}
	sayPeak()
	<-stop // until the sender knows that they have arrived
	return nil
}

package fabric_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A history is what one node was told by each of the others, checked as it comes:
// the numbers 1, 2, 3 and so on, each once.
type history struct {
	mu   sync.Mutex // guards last
	last map[string]int
	bad  atomic.Int64
	n    atomic.Int64
}

func (h *history) add(t *testing.T, to fabric.PID, m *fabric.Message) {
	var n int
	number, rest, _ := bytes.Cut(m.Data, []byte("."))
	if _, err := fmt.Sscan(string(number), &n); err != nil {
		t.Errorf("%s got %.20q from %s", to, m.Data, m.From)
		return
	}
	if len(rest) != bytes.Count(rest, []byte{byte(n)}) {
		t.Errorf("message %d to %s is not what was sent", n, to)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	key := string(m.From) + ">" + string(to)
	if want := h.last[key] + 1; n != want && h.bad.Add(1) < 5 {
		t.Errorf("%s: message %d, want %d", key, n, want)
	}
	h.last[key] = n
	h.n.Add(1)
}

// TestReliableFaults has three nodes talk on links for two minutes, large messages
// among small ones, while their connections are cut, halved and killed, the server is
// restarted, and old messages come again. Every message arrives once and in order.
func TestReliableFaults(t *testing.T) {
	seeds := uint64(2)
	if natstest.Race {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			natstest.Bubble(t, func(t *testing.T, s *natstest.Server) { reliableFaults(t, s, seed) })
		})
	}
}

func reliableFaults(t *testing.T, s *natstest.Server, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	pids := []fabric.PID{"a", "b", "c"}
	h := &history{last: make(map[string]int)}
	var nodes []*fabric.Node
	var links []*natstest.Link
	for _, pid := range pids {
		n, l := joinLink(t, s, string(pid), func(c *fabric.Config) {
			c.Lease, c.Mode, c.Logger = time.Minute, fabric.Reliable, nil
		})
		nodes, links = append(nodes, n), append(links, l)
	}
	await(t, nodes[0], pids...)
	ctx, cancel := context.WithCancel(t.Context())
	var receivers, senders sync.WaitGroup
	for _, n := range nodes {
		receivers.Go(func() {
			for m, err := range n.Messages(ctx) {
				if err == nil {
					h.add(t, n.PID(), m)
				}
			}
		})
	}
	stop := make(chan struct{})
	var sent atomic.Int64
	for i, n := range nodes {
		for _, to := range pids {
			if to == n.PID() {
				continue
			}
			senders.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(i)))
				for k := 1; ; k++ {
					select {
					case <-stop:
						return
					case <-time.After(time.Duration(rnd.IntN(120)) * time.Millisecond):
					}
					data := fmt.Append(nil, k, ".")
					if rnd.IntN(100) == 0 { // larger than a part
						data = append(data, bytes.Repeat([]byte{byte(k)}, 260<<10+rnd.IntN(1<<20))...)
					}
					if err := n.Send(ctx, to, data); err != nil {
						t.Errorf("%s > %s: %v", n.PID(), to, err)
						return
					}
					clear(data) // it is the caller's again
					sent.Add(1)
				}
			})
		}
	}
	faults := disturb(t, s, rnd, links)
	close(stop)
	for _, l := range links {
		l.Heal()
	}
	senders.Wait()
	for _, n := range nodes {
		flush, done := context.WithTimeout(ctx, 2*time.Minute)
		if err := n.Flush(flush); err != nil {
			t.Errorf("Flush of %s: %.300v", n.PID(), err)
		}
		done()
	}
	// What is acknowledged is in an inbox; it may still have to be taken.
	for range 1000 {
		if h.n.Load() >= sent.Load() {
			break
		}
		time.Sleep(time.Millisecond) // in fake time
	}
	cancel()
	receivers.Wait()
	if h.n.Load() != sent.Load() {
		t.Errorf("%d of %d messages arrived", h.n.Load(), sent.Load())
	}
	if sent.Load() < 10_000 || faults < 50 {
		t.Errorf("only %d messages and %d faults", sent.Load(), faults)
	}
	t.Logf("%d messages, %d faults", sent.Load(), faults)
}

// disturb spends two minutes with the links and the server.
func disturb(t *testing.T, s *natstest.Server, rnd *rand.Rand, links []*natstest.Link) (faults int) {
	// old keeps messages of the wire, to publish them again, late and out of order.
	raw := s.Connect()
	var mu sync.Mutex // guards old
	var old []*nats.Msg
	if _, err := raw.Subscribe("fab.c.production.u.>", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		if old = append(old, m); len(old) > 500 {
			old = old[250:]
		}
	}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); faults++ {
		pause := func() { time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond) }
		l := links[rnd.IntN(len(links))]
		switch rnd.IntN(6) {
		case 0:
			l.Cut()
			pause()
			l.Heal()
		case 1:
			l.CutReplies()
			pause()
			l.Heal()
		case 2, 3:
			l.Kill()
		case 4:
			mu.Lock()
			again := append([]*nats.Msg(nil), old...)
			mu.Unlock()
			for range min(20, len(again)) {
				m := again[rnd.IntN(len(again))]
				_ = raw.PublishMsg(&nats.Msg{Subject: m.Subject, Reply: m.Reply, Header: m.Header, Data: m.Data})
			}
		case 5:
			if rnd.IntN(4) == 0 {
				s.Restart()
			}
		}
		pause()
	}
	return faults
}

//go:build linux

package peers

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

var (
	sizes     = flag.String("members", "100", "how many members, several numbers separated by commas")
	wave      = flag.Int("wave", 0, "how many members join at once; 0: all. memberlist's first member cannot take in a thousand")
	idle      = flag.Duration("idle", 20*time.Second, "for how long members do nothing, while their cost is measured")
	evictions = flag.Duration("evictions", 10*time.Second, "for how long nobody may be evicted under load")
)

// A crowd is members in this process, each with a connection of its own.
type crowd struct {
	b       *testing.B
	ground  ground
	members []member
	tally   *natstest.Tally
	seq     atomic.Int64
	// fewer is how often any of them saw fewer members than before.
	fewer atomic.Int64
}

// gather has so many join, -wave of them at once, and returns when all see all: how long
// that took.
func gather(b *testing.B, of membership, size int) (*crowd, time.Duration) {
	b.Helper()
	g, err := of.open(b)
	if err != nil {
		b.Fatal(err)
	}
	c := &crowd{b: b, ground: g, members: make([]member, size), tally: natstest.NewTally(size)}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.Context()), patience)
		defer cancel()
		each(size, func(i int) {
			if c.members[i] != nil {
				c.members[i].leave(ctx) // a leave that nobody is there to hear may fail
			}
		})
	})
	began := time.Now()
	c.join(0)
	at := cmp.Or(*wave, size)
	for first := 1; first < size; first += at {
		each(min(at, size-first), func(i int) { c.join(first + i) })
	}
	if b.Failed() {
		b.FailNow()
	}
	c.await(size, size)
	return c, time.Since(began)
}

// each calls f for 0 to n-1 at once, and waits.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// join has member i join under a name that nobody had.
func (c *crowd) join(i int) {
	ctx, cancel := context.WithTimeout(c.b.Context(), 2*patience)
	defer cancel()
	last := 0
	m, err := c.ground.join(ctx, fmt.Sprintf("m%d-%d", i, c.seq.Add(1)), func(members int) {
		if members < last {
			c.fewer.Add(1)
		}
		last = members
		c.tally.Saw(i, members)
	})
	if err != nil {
		c.b.Errorf("member %d: %v", i, err)
		return
	}
	c.members[i] = m
}

// await returns when so many members see a number of them.
func (c *crowd) await(number, members int) {
	c.b.Helper()
	agreed := c.tally.Agreed(number, members)
	progress := time.NewTicker(10 * time.Second)
	defer progress.Stop()
	deadline := time.After(3 * patience)
	for {
		select {
		case <-agreed:
			return
		case <-progress.C:
			fmt.Fprintf(os.Stderr, "%s: %d members are to see %d: %v\n", c.b.Name(), members, number, c.tally)
		case <-deadline:
			c.b.Fatalf("%d members never see %d: %v", members, number, c.tally)
		}
	}
}

// BenchmarkMembers is, for each kind of membership and number of members: how long it
// takes all to see all who join at once; all others to see one leave; all others to
// see a process end that was killed; and what it costs all together, with the server,
// if they have one, to do nothing. An iteration is one leave and one kill.
func BenchmarkMembers(b *testing.B) {
	for _, text := range strings.Split(*sizes, ",") {
		size, err := strconv.Atoi(text)
		if err != nil {
			b.Fatal(err)
		}
		for _, of := range memberships {
			b.Run(fmt.Sprintf("members=%d/%s", size, of.name), func(b *testing.B) {
				c, joined := gather(b, of, size)
				var left, crashed []time.Duration
				for b.Loop() {
					left = append(left, c.leave())
					crashed = append(crashed, c.crash())
				}
				b.ReportMetric(joined.Seconds(), "join-s") // the loop begins with no metrics
				percentiles(b, "leave", left)
				percentiles(b, "crash", crashed)
				c.idle()
			})
		}
	}
}

// rest is for how long nothing happens before something is measured, so that it is the
// first change for a while, as most are.
const rest = 3 * time.Second

// leave has the last member leave, and another join in its place.
func (c *crowd) leave() time.Duration {
	size := len(c.members)
	<-time.After(rest)
	last := c.members[size-1]
	c.members[size-1] = nil
	c.tally.Saw(size-1, 0)
	ctx, cancel := context.WithTimeout(c.b.Context(), patience)
	defer cancel()
	began := time.Now()
	if err := last.leave(ctx); err != nil {
		c.b.Fatal(err)
	}
	c.await(size-1, size-1)
	took := time.Since(began)
	c.join(size - 1)
	if c.b.Failed() {
		c.b.FailNow()
	}
	c.await(size, size)
	return took
}

// crash kills the process of one more member.
func (c *crowd) crash() time.Duration {
	size := len(c.members)
	victim := c.ground.victim(c.b, fmt.Sprint("v", c.seq.Add(1)))
	c.await(size+1, size)
	<-time.After(rest)
	began := time.Now()
	victim.kill()
	c.await(size, size)
	return time.Since(began)
}

// idle reports what it costs to do nothing.
func (c *crowd) idle() {
	<-time.After(rest)
	sent0, err := c.ground.messages()
	if err != nil {
		c.b.Fatal(err)
	}
	cpu, began := cpuOf(c.b, os.Getpid()), time.Now()
	<-time.After(*idle)
	used, took := cpuOf(c.b, os.Getpid())-cpu, time.Since(began)
	sent, err := c.ground.messages()
	if err != nil {
		c.b.Fatal(err)
	}
	c.b.ReportMetric(float64(sent-sent0)/took.Seconds()/float64(len(c.members)), "idle-msg/s/member")
	c.b.ReportMetric(used.Seconds()/took.Seconds()*100, "idle-cpu-%")
}

// BenchmarkEvictions has a hundred members and twice as many busy threads as there are
// processors: how often one of them sees another gone, who is not, within -evictions.
// An iteration is that long for each kind of membership, one after the other.
func BenchmarkEvictions(b *testing.B) {
	const size = 100
	for _, of := range memberships {
		b.Run(of.name, func(b *testing.B) {
			c, _ := gather(b, of, size)
			play(b, "spinners")
			before := c.fewer.Load()
			for b.Loop() {
				<-time.After(*evictions)
			}
			b.ReportMetric(float64(c.fewer.Load()-before), "evictions-seen")
			b.ReportMetric(0, "ns/op")
		})
	}
}

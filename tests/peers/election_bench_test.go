//go:build linux

package peers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/election"
)

// BenchmarkElectionCrash is from SIGKILL of the process that leads, at any time since it
// renewed its lease, to the next leader's knowing that it leads; and, as "exit", to the
// process's end by the word of the kernel, before which there is no proof. An iteration
// is one kill for each electorate in turn.
func BenchmarkElectionCrash(b *testing.B) {
	for _, lease := range []time.Duration{300 * time.Millisecond, time.Second, 2 * time.Second} {
		b.Run("lease="+lease.String(), func(b *testing.B) {
			all := contests(b, lease, "fabric", "proof", "proof-unsynced", "proof-large", "protocol", "plainkv", "etcd")
			standers := make([]candidate, len(all))
			ctx, cancel := context.WithCancel(b.Context()) // -timeout bounds it
			defer cancel()
			for i, c := range all {
				standers[i] = c.candidate(ctx)
			}
			for b.Loop() {
				for i, c := range all {
					c.crash(ctx, standers[i])
				}
			}
			for i, c := range all {
				percentiles(b, c.name, c.took)
				percentiles(b, c.name+"-exit", c.exits)
				b.ReportMetric(float64(slices.Max(c.sizes)), c.name+"-MiB")
				if err := standers[i].leave(ctx); err != nil {
					b.Errorf("%s: leave: %v", c.name, err)
				}
			}
		})
	}
}

// crash kills a process that leads, has next lead, and takes it back.
func (c *contest) crash(ctx context.Context, next candidate) {
	c.b.Helper()
	leader := c.leader()
	won := c.won(ctx, next)
	<-time.After(rand.N(c.lease))
	exited := make(chan time.Time, 1)
	go func() { leader.cmd.Wait(); exited <- time.Now() }()
	c.sizes = append(c.sizes, leader.size(c.b))
	began := time.Now()
	leader.kill()
	c.took = append(c.took, (<-won).Sub(began))
	c.exits = append(c.exits, (<-exited).Sub(began))
	if c.b.Failed() {
		c.b.FailNow()
	}
	if err := next.resign(ctx); err != nil {
		c.b.Fatalf("%s: resign: %v", c.name, err)
	}
}

// BenchmarkElectionResign is from the leader's call to give up to the knowledge of the
// one who waited that it leads. An iteration is ten hand-overs for each electorate in
// turn.
func BenchmarkElectionResign(b *testing.B) {
	const turns = 10
	all := contests(b, 5*time.Second, "fabric", "unsynced", "plainkv", "etcd")
	two := make([][2]candidate, len(all))
	ctx, cancel := context.WithCancel(b.Context()) // -timeout bounds it
	defer cancel()
	for i, c := range all {
		two[i] = [2]candidate{c.candidate(ctx), c.candidate(ctx)}
		if err := two[i][0].campaign(ctx); err != nil {
			b.Fatalf("%s: %v", c.name, err)
		}
	}
	for b.Loop() {
		for i, c := range all {
			for range turns {
				c.handOver(ctx, two[i][0], two[i][1])
				two[i][0], two[i][1] = two[i][1], two[i][0]
			}
		}
	}
	for i, c := range all {
		percentiles(b, c.name, c.took)
		if err := two[i][0].resign(ctx); err != nil {
			b.Errorf("%s: %v", c.name, err)
		}
		for _, cand := range two[i] {
			if err := cand.leave(ctx); err != nil {
				b.Errorf("%s: leave: %v", c.name, err)
			}
		}
	}
}

func (c *contest) handOver(ctx context.Context, leader, next candidate) {
	c.b.Helper()
	won := c.won(ctx, next)
	began := time.Now()
	if err := leader.resign(ctx); err != nil {
		c.b.Fatalf("%s: resign: %v", c.name, err)
	}
	c.took = append(c.took, (<-won).Sub(began))
	if c.b.Failed() {
		c.b.FailNow()
	}
}

// BenchmarkElectionIdle is the processor time that elections take in which nothing
// happens, under leases of 5 s: of the server, the process that leads all of them and
// the one that stands for all of them, in percent of one core. An iteration is 20 s,
// for all electorates at once.
func BenchmarkElectionIdle(b *testing.B) {
	const window = 20 * time.Second
	for _, elections := range []int{1, 1000} {
		b.Run(fmt.Sprint("elections=", elections), func(b *testing.B) {
			all := contests(b, 5*time.Second, "fabric", "plainkv", "etcd")
			type crew struct{ server, leader, stander *process }
			crews := make([]crew, len(all))
			for i, c := range all {
				stand := func(id, how string) *process {
					return play(b, "stander", c.name, c.url, "", id, c.lease.String(), fmt.Sprint(elections), how)
				}
				crews[i] = crew{c.srv, stand("a", "lead"), stand("b", "stand")}
			}
			used := map[string]time.Duration{}
			account := func(sign time.Duration) {
				for i, c := range all {
					used[c.name+"-server"] += sign * crews[i].server.cpu(b)
					used[c.name+"-leader"] += sign * crews[i].leader.cpu(b)
					used[c.name+"-stander"] += sign * crews[i].stander.cpu(b)
				}
			}
			var took time.Duration
			for b.Loop() {
				account(-1)
				began := time.Now()
				<-time.After(window)
				account(1)
				took += time.Since(began)
			}
			for name, d := range used {
				b.ReportMetric(d.Seconds()/took.Seconds()*100, name+"-cpu-%")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// standMany has this process stand for n elections, over one connection and under one
// session where the electorate has sessions. If lead is set it returns when it leads
// all of them, and otherwise when all of its candidates have begun to wait.
func standMany(ctx context.Context, e electorate, url, id string, lease time.Duration, n int, lead bool) error {
	first, err := e.stand(ctx, url, "e0", id, lease)
	if err != nil {
		return err
	}
	all := []candidate{first}
	for i := 1; i < n; i++ {
		next, err := sibling(first, fmt.Sprint("e", i), lease)
		if err != nil {
			return err
		}
		all = append(all, next)
	}
	for _, c := range all {
		if lead {
			if err := c.campaign(ctx); err != nil {
				return err
			}
			continue
		}
		go c.campaign(ctx) // for ever
	}
	return settle(ctx)
}

// sibling is a candidate for another election in the process of c.
func sibling(c candidate, name string, lease time.Duration) (candidate, error) {
	switch c := c.(type) {
	case *fabricCandidate:
		return elect(c.node, election.Config{Name: name})
	case *plainCandidate:
		return newPlainCandidate(c.nc, c.kv, name, c.id, lease), nil
	case *etcdCandidate:
		return newEtcdCandidate(c.client, c.session, name, c.id), nil
	}
	return nil, fmt.Errorf("%T has no siblings", c)
}

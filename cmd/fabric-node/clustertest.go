package main

import (
	"fmt"
	"strings"

	"github.com/natsfabric/natsfabric/balance"
)

// clusterTest prints in the words of libcluster's cluster-test: what it says about
// the cluster on stdout, with -v what the library logs on stderr.
type clusterTest struct {
	app     *app
	name    string
	workers int
	last    balance.Share
}

func newClusterTest(a *app, workers int) *clusterTest {
	name := a.opts.cluster + "/" + a.opts.env
	if a.opts.group != defaultGroup {
		name = a.opts.cluster + "/" + a.opts.group + "/" + a.opts.env
	}
	return &clusterTest{app: a, name: name, workers: workers, last: balance.Share{First: -1}}
}

// say prints a line about the program's own course; on stderr, if stdout is for objects.
func (c *clusterTest) say(text string) {
	w := c.app.stdout
	if !c.app.table() {
		if c.app.opts.quiet {
			return
		}
		w = c.app.stderr
	}
	fmt.Fprintln(w, "cluster-test: "+text)
}

// log prints a line of the library's log; 5 is notice, 7 is debug.
func (c *clusterTest) log(priority int, format string, args ...any) {
	if c.app.opts.verbose {
		fmt.Fprintf(c.app.stderr, "libcluster<%d>: "+format+"\n", append([]any{priority}, args...)...)
	}
}

func (c *clusterTest) balanced(s balance.Share, members []balance.Placed, static bool) error {
	if !static {
		c.log(7, "libcluster: nats: re-balancing cluster %s:", c.name)
		next := 0 // once we have left, the others close the gap
		for _, m := range members {
			mark, first := " ", -1
			if m.Self {
				mark = "*"
			}
			if m.First >= 0 {
				first = next
				next += m.Workers
			}
			c.log(7, "%s %s [%d]", mark, m.PID, first)
		}
		if s.First < 0 && c.last.First >= 0 {
			c.log(5, "libcluster: nats: this instance is no longer a member of %s", c.name)
		} else {
			c.log(5, "libcluster: nats: cluster %s has re-balanced: new base is %d (was %d), new total is %d (was %d)",
				c.name, s.First, c.last.First, s.Total, c.last.Total)
		}
	}
	workers := s.Workers
	if s.First < 0 && workers == 0 {
		workers = c.workers // what it has asked for, as cluster-test shows it when it has left
	}
	c.log(7, "libcluster: re-balanced; this instance has index %d (%d threads) from a total of %d", s.First, workers, s.Total)
	c.last = s
	var b strings.Builder
	b.WriteString("cluster-test: cluster has re-balanced:\n")
	fmt.Fprintf(&b, "   instance index:        %d\n", s.First)
	fmt.Fprintf(&b, "   instance thread count: %d\n", workers)
	fmt.Fprintf(&b, "   total thread count:    %d\n", s.Total)
	_, err := fmt.Fprint(c.app.stdout, b.String())
	return err
}

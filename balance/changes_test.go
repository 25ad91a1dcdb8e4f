package balance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
	"github.com/natsfabric/natsfabric/internal/roster"
)

// A diary is what one reader of Changes was told. It checks what always holds.
type diary struct {
	t      *testing.T
	mu     sync.Mutex // guards the fields below
	kinds  []string   // "join a", "fail a by lease"
	here   map[fabric.PID]Placed
	synced bool
	epoch  uint64
	err    error
	news   chan struct{}
}

func keep(t *testing.T, g *Group) *diary {
	d := &diary{t: t, here: map[fabric.PID]Placed{}, news: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for c, err := range g.Changes(ctx) {
			d.note(c, err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return d
}

func (d *diary) note(c Change, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer func() {
		select {
		case d.news <- struct{}{}:
		default:
		}
	}()
	if d.err = err; err != nil {
		return
	}
	known, ok := d.here[c.Member.PID]
	wrong := func(why string) { d.t.Errorf("%+v: %s; it was %+v", c, why, known) }
	if c.Epoch < d.epoch {
		wrong("the epoch goes back")
	}
	d.epoch = c.Epoch
	switch c.Kind {
	case fabric.Synced:
		d.synced = true
		return
	case fabric.Joined:
		if ok {
			wrong("joined twice")
		}
		d.here[c.Member.PID] = c.Member
	case fabric.Left, fabric.Failed:
		if !ok || known.Incarnation != c.Member.Incarnation || (c.Kind == fabric.Failed) != (c.Reason != 0) {
			wrong("gone, and not as it came")
		}
		delete(d.here, c.Member.PID)
	default:
		if !ok || known.Incarnation != c.Member.Incarnation {
			wrong("of nobody")
		}
		d.here[c.Member.PID] = c.Member
	}
	if !d.synced && c.Kind != fabric.Joined {
		wrong("before Synced")
	}
	text := fmt.Sprint(c.Kind, " ", c.Member.PID)
	switch {
	case c.Reason != 0:
		text += " by " + c.Reason.String()
	case c.Kind == fabric.Updated || c.Member.Standing != Active:
		text += fmt.Sprintf(" %v %d", c.Member.Standing, c.Member.Workers)
	}
	d.kinds = append(d.kinds, text)
}

// next waits for the changes and takes them off.
func (d *diary) next(want ...string) {
	d.t.Helper()
	ctx := limit(d.t, time.Minute)
	for {
		d.mu.Lock()
		got := slices.Clone(d.kinds)
		if len(got) >= len(want) {
			d.kinds = d.kinds[len(want):]
		}
		d.mu.Unlock()
		if len(got) >= len(want) {
			if got = got[:len(want)]; !slices.Equal(got, want) {
				d.t.Fatalf("it was told %q, want %q", got, want)
			}
			return
		}
		if wait(ctx, d.news) != nil {
			d.t.Fatalf("it was told %q, want %q", got, want)
		}
	}
}

func TestClusterChanges(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := in(t, s, "a", Config{}), in(t, s, "b", Config{Workers: 2})
		b.awaitShare(t, time.Minute, 1, 2, 3)
		d := keep(t, b.Group)
		d.next("join a", "join b")
		c := in(t, s, "c", Config{NotReady: true, Workers: 3})
		d.next("join c not ready 0")
		if err := c.SetReady(limit(t, time.Minute), true); err != nil {
			t.Fatal(err)
		}
		d.next("update c active 3")
		if err := a.SetWorkers(limit(t, time.Minute), 4); err != nil {
			t.Fatal(err)
		}
		d.next("update a active 4") // c and b move, and that is no change
		if err := Evict(limit(t, time.Minute), a.node, "g", "a", nil); err != nil {
			t.Fatal(err)
		}
		d.next("update a evicted 0")
		if err := Restore(limit(t, time.Minute), a.node, "g", "a"); err != nil {
			t.Fatal(err)
		}
		d.next("update a active 4")
		withdraw(t, c) // its node stays
		d.next("leave c")
		if err := c.node.Leave(limit(t, time.Minute)); err != nil {
			t.Error(err)
		}

		// Who cannot be reached is suspected, and found again or not. Then its lease counts.
		c = in(t, s, "c", Config{Workers: 3})
		d.next("join c")
		time.Sleep(10 * time.Second) // the view is quiet
		for _, away := range []time.Duration{100 * time.Millisecond, time.Second} {
			c.link.Cut()
			c.link.Kill()
			time.Sleep(20 * time.Millisecond) // until the server knows
			if err := a.node.Send(limit(t, time.Minute), "c", nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(away)
			c.link.Heal()
			d.next("suspect c")
			if away == time.Second {
				d.next("fail c by unreachable", "join c")
			} else {
				d.next("alive c")
			}
			time.Sleep(3 * time.Second)
		}
		c.link.Cut()
		d.next("fail c by lease")
		c.link.Heal()
		d.next("join c")

		// b itself is cut off for a while, and then for too long.
		b.link.Cut()
		d.next("stale b")
		b.link.Heal()
		d.next("alive b")
		b.link.Cut()
		d.next("stale b")
		b.awaitShare(t, time.Minute, -1, 0, 7)
		a.awaitShare(t, time.Minute, 0, 4, 7)
		b.link.Heal()
		d.next("fail b by lease", "join b")
		withdraw(t, b)
		for d.told(); ; {
			d.mu.Lock()
			err := d.err
			d.mu.Unlock()
			if err != nil {
				if !errors.Is(err, ErrClosed) {
					t.Errorf("the changes end with %v, want ErrClosed", err)
				}
				break
			}
			<-d.news
		}
		withdraw(t, a)
		withdraw(t, c)
	})
}

func (d *diary) told() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.kinds)
}

// Signs of an end make a member suspected; it is so until the group's view is without it,
// also when the fabric's is first.
func TestSuspectsOfAGroup(t *testing.T) {
	view := func(suspects map[string]uint64, members ...*roster.Member) *roster.View {
		return &roster.View{Members: members, Suspects: suspects}
	}
	a, b, b2, c := &roster.Member{PID: "a", Inc: 1}, &roster.Member{PID: "b", Inc: 2}, &roster.Member{PID: "b", Inc: 9}, &roster.Member{PID: "c", Inc: 3}
	for name, tt := range map[string]struct {
		group, nodes *roster.View
		before, want map[string]uint64
	}{
		"nobody":                       {view(nil, a, b), view(nil, a, b), nil, nil},
		"one":                          {view(nil, a, b), view(map[string]uint64{"b": 2}, a, b), nil, map[string]uint64{"b": 2}},
		"one that is not of the group": {view(nil, a), view(map[string]uint64{"c": 3}, a, c), nil, map[string]uint64{}},
		"another incarnation":          {view(nil, a, b2), view(map[string]uint64{"b": 2}, a, b), nil, map[string]uint64{}},
		"found again":                  {view(nil, a, b), view(nil, a, b), map[string]uint64{"b": 2}, map[string]uint64{}},
		"gone from the fabric":         {view(nil, a, b), view(nil, a), map[string]uint64{"b": 2}, map[string]uint64{"b": 2}},
		"replaced in the fabric":       {view(nil, a, b), view(nil, a, b2), map[string]uint64{"b": 2}, map[string]uint64{"b": 2}},
		"gone from both":               {view(nil, a), view(nil, a), map[string]uint64{"b": 2}, map[string]uint64{}},
	} {
		got := suspects(tt.group, tt.nodes, tt.before)
		if fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestStaticChanges(t *testing.T) {
	ctx := t.Context()
	g, err := Static(ctx, 2, 1, 8, Config{})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for c, err := range g.Changes(ctx) {
		if err != nil {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("it ends with %v", err)
			}
			break
		}
		kinds = append(kinds, fmt.Sprint(c.Kind, " ", c.Member.First, " ", c.Member.Workers))
		switch len(kinds) {
		case 2:
			if err := g.SetWorkers(ctx, 3); err != nil {
				t.Fatal(err)
			}
		case 3:
			if err := g.Leave(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, want := strings.Join(kinds, ", "), "join 2 1, synced 0 0, update 2 3"; got != want {
		t.Errorf("a static group tells %s, want %s", got, want)
	}
}

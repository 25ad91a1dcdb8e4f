package roster

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/latest"
	"github.com/natsfabric/natsfabric/internal/lease"
)

// Signals carries announcements between the nodes of a fabric.
type Signals interface {
	Signal(kind string, data []byte) error
	OnSignal(kind string, f func(from string, data []byte)) (stop func(), err error)
}

// A Census tells a coordinator who is here. It runs until ctx ends and calls
// report once that is known and whenever it has changed. before is the view that the
// coordinator begins with.
type Census func(ctx context.Context, before *View, report func(Count)) error

// A Count is what a census found. It is not modified once it is reported.
type Count struct {
	// Members is everyone, in any order.
	Members []*Member
	// Ended tells how a member departed that is no longer there: its PID and Inc, and
	// whether it failed rather than left.
	Ended func(*Member) Departure
	// Coming is how many more are likely to come by the time Until. They are not in Members.
	Coming int
	Until  time.Time
	// Suspects are the members of which there are signs that they have ended, with
	// their incarnations. They are announced, and are members.
	Suspects map[string]uint64
	// Plan, if there is one, fills in what next says beyond the members: next is the
	// view to follow before, with Members, which are copies that it may change. It must do nothing
	// but compute, and come to an end: planning again after a view that it made,
	// again and again, must at last change nothing. soon: the view need not wait for
	// the quiet time, because it only goes on with what an earlier one began.
	Plan func(before, next *View) (soon bool)
}

// A Host is what rosters and elections need of the node they live on.
type Host struct {
	Session *lease.Session
	Signals Signals
	Members *Roster // of the fabric
	Logger  *slog.Logger
}

// Config describes one roster.
type Config struct {
	Name    string // "members", "g.<group>"
	Session *lease.Session
	Signals Signals
	Census  Census // nil: this node only follows
	Quiet   time.Duration
	Ceiling time.Duration
	Logger  *slog.Logger
}

// Times of the protocol.
const (
	DefaultQuiet   = 50 * time.Millisecond
	DefaultCeiling = time.Second
	// beacon is how often the coordinator names the current epoch, and how soon after a
	// change. While nothing changes it is more seldom if the members are many: see often.
	beacon     = 5 * time.Second
	beaconEach = 10 * time.Millisecond
	beaconMost = 20 * time.Second
	// standbys is how many of the oldest members wait for the coordinator's claim;
	// everyone does in a roster of at most allStandBy, and when they had the time to
	// take it and no beacon was heard.
	standbys   = 8
	allStandBy = 32
)

// A Roster follows one list of members, and coordinates it when its turn comes.
type Roster struct {
	cfg    Config
	b      *kv.Bucket
	key    string
	kind   string
	claim  *lease.Claim
	view   latest.Value[*View]
	cancel context.CancelFunc
	wg     sync.WaitGroup
	unsub  func()

	heard chan announcement // capacity 64: when full the follower is told to read
	again chan struct{}     // capacity 1: asks the follower to read

	mu      sync.Mutex // guards the fields below
	turnout turnout
	err     error // why the view cannot be read, if it is not the fabric's
}

// Start follows the roster, and lets this node coordinate it if cfg has a census.
// Close ends it.
func Start(ctx context.Context, cfg Config) (*Roster, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &Roster{
		cfg: cfg, b: cfg.Session.Bucket(), key: lease.KeyView(cfg.Name), kind: "view-" + dashed(cfg.Name),
		cancel: cancel, heard: make(chan announcement, 64), again: make(chan struct{}, 1),
	}
	r.view.Store(&View{Key: r.key})
	unsub, err := cfg.Signals.OnSignal(r.kind, r.hear)
	if err != nil {
		cancel()
		return nil, err
	}
	r.unsub = unsub
	r.wg.Go(func() { r.follow(ctx) })
	if cfg.Census != nil && cfg.Session.Candidate() {
		r.claim = cfg.Session.Claim(lease.KeyRoster(cfg.Name))
		exit := cfg.Session.Enter()
		r.wg.Go(func() { defer exit(); r.candidate(ctx) })
	}
	return r, nil
}

// dashed makes a roster's name one subject token.
func dashed(name string) string {
	b := []byte(name)
	for i := range b {
		if b[i] == '.' {
			b[i] = '-'
		}
	}
	return string(b)
}

// Close stops following and coordinating, and waits.
func (r *Roster) Close() {
	r.cancel()
	r.unsub()
	r.wg.Wait()
}

// View returns the newest view and a channel that is closed at the next.
func (r *Roster) View() (*View, <-chan struct{}) { return r.view.Load() }

// reread asks for the view to be read.
func (r *Roster) reread() {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

// asked takes back what reread asked for until now.
func (r *Roster) asked() {
	select {
	case <-r.again:
	default:
	}
}

// Await returns when ok accepts a view. ok is asked about every view, and again
// when the channel closes that it returned.
func (r *Roster) Await(ctx context.Context, ok func(*View) (bool, <-chan struct{}, error)) error {
	for {
		v, changed := r.view.Load()
		accepted, again, err := ok(v)
		if accepted || err != nil {
			return err
		}
		r.mu.Lock()
		err = r.err
		r.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// hear takes an announcement off the reader's hands.
func (r *Roster) hear(from string, data []byte) {
	a, err := decodeAnnouncement(data)
	if err != nil || a.PID != from { // a coordinator speaks for itself only
		return
	}
	select {
	case r.heard <- a:
	default:
		r.reread()
	}
}

// follow keeps the view up to date until ctx ends.
func (r *Roster) follow(ctx context.Context) {
	r.reread()
	var want View // announced, and not read yet
	nudged := r.b.Nudged()
	for n := 0; ctx.Err() == nil; { // n: how many reads have failed
		every := often(len(r.view.Get().Members))
		timer := time.NewTimer(2*every + rand.N(every))
		silent := false
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case a := <-r.heard:
			timer.Stop()
			if r.take(a) {
				if r.healed(a, &want) {
					n = 0
				}
				continue
			}
			want = View{Token: a.Token, Epoch: a.Epoch}
		case <-r.again:
		case <-nudged: // the connection was away
			nudged = r.b.Nudged()
		case <-timer.C:
			silent = true
		}
		timer.Stop()
		if !silent && r.linger(ctx, n, &want) {
			n = 0
			continue
		}
		r.asked() // this read is the answer
		read := func() error { return r.read(ctx, &want) }
		if r.cfg.Census == nil && want.Token == 0 && (silent || r.view.Get().sifted) {
			read = func() error { return r.sync(ctx) }
		}
		err := read()
		if err == nil {
			n, want = 0, View{}
			continue
		}
		r.cfg.Logger.Debug("view not read", "roster", r.cfg.Name, "err", err)
		if n++; n >= believed {
			want = View{} // anybody can announce anything
		}
		r.reread()
	}
}

// linger waits before a read, longer the more there is to read, since all followers of a
// large view may have missed the same. It goes on listening: true means that nothing is
// left to be read, or that ctx has ended. n is how many reads have failed.
func (r *Roster) linger(ctx context.Context, n int, want *View) bool {
	d := r.spread(time.Millisecond, time.Second)
	if n > 0 {
		d += kv.PauseTime(n - 1)
	}
	if d == 0 {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return true
		case <-timer.C:
			return false
		case a := <-r.heard:
			if !r.take(a) {
				*want = View{Token: a.Token, Epoch: a.Epoch}
			} else if r.healed(a, want) {
				return true
			}
		}
	}
}

// spread returns a random time, of each for every member and at most of most, for what
// all followers would do at once. Of few members there is no need.
func (r *Roster) spread(each, most time.Duration) time.Duration {
	members := len(r.view.Get().Members)
	if members <= allStandBy {
		return 0
	}
	return rand.N(min(time.Duration(members)*each, most))
}

// healed reports whether the view is what a, which was taken, says that it is, so that a
// read that is due or wanted is no longer needed.
func (r *Roster) healed(a announcement, want *View) bool {
	v := r.view.Get()
	if v.Token != a.Token || v.Epoch != a.Epoch || v.before(want) {
		return false // old news
	}
	*want = View{}
	r.asked()
	return true
}

// believed is how often a view is looked for that was announced and is not to be read: a
// server that was deposed answers from the past.
const believed = 20

// take applies a, and reports false if the view must be read instead.
func (r *Roster) take(a announcement) bool {
	r.heardOne()
	v := r.view.Get()
	switch {
	case v.sifted:
		return false // there is a coordinator: its view counts
	case a.Token == v.Token && a.Epoch == v.Epoch:
		r.suspect(a.Token, a.Epoch, a.Suspects)
		return true
	case a.Token < v.Token, a.Token == v.Token && a.Epoch < v.Epoch:
		return true // old news
	case a.After != v.Token, a.Prev != v.Epoch, a.Prev == a.Epoch:
		return false // a gap, or a new bucket
	}
	r.advance(v.next(a))
	return true
}

// before reports whether o came after v. The token comes first: in a bucket that was lost
// and made anew the epochs begin again.
func (v *View) before(o *View) bool {
	return v.Token < o.Token || v.Token == o.Token && v.Epoch < o.Epoch
}

// advance makes v the view unless a newer one is known.
func (r *Roster) advance(v *View) {
	r.view.Update(func(old *View) (*View, bool) {
		return v, old.before(v)
	})
}

// suspect notes whom the coordinator suspects, of the view of an epoch.
func (r *Roster) suspect(token, epoch uint64, suspects map[string]uint64) {
	r.view.Update(func(v *View) (*View, bool) {
		if v.Token != token || v.Epoch != epoch || maps.Equal(v.Suspects, suspects) {
			return v, false
		}
		next := *v
		next.Suspects = suspects
		return &next, true
	})
}

// errBehind: a read that shows less than was announced.
var errBehind = errors.New("the view read is older than the one announced")

// read reads the view. What sync left of it stays so, unless a coordinator announced want.
func (r *Roster) read(ctx context.Context, want *View) error {
	v, err := r.stored(ctx)
	if err != nil {
		return err
	}
	behind := v.before(want)
	r.view.Update(func(old *View) (*View, bool) {
		heard := want.Token != 0 && !behind
		return v, old.before(v) || heard && old.sifted && !v.before(old)
	})
	if behind {
		return errBehind
	}
	return nil
}

// stored returns the view in the bucket.
func (r *Roster) stored(ctx context.Context) (*View, error) {
	e, err := r.b.Get(ctx, r.key)
	if err != nil && !errors.Is(err, kv.ErrNoBucket) {
		return nil, err
	}
	v, err := parseView(e)
	r.mu.Lock()
	r.err = err
	r.mu.Unlock()
	if err != nil {
		r.view.Update(func(v *View) (*View, bool) { return v, true }) // wake who waits
	}
	return v, err
}

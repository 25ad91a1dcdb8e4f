package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/fabric"
)

// Values of --restart-policy, --barrier and --on-change.
const (
	policyAlways    = "always"
	policyOnFailure = "on-failure"
	policyNever     = "never"

	barrierAuto  = "auto" // index if --on-change is restart, else off
	barrierOff   = "off"
	barrierIndex = "index"
	barrierEpoch = "epoch"

	changeRestart = "restart"
	changeIgnore  = "ignore"
	changeSignal  = "signal:"
)

// Waits before a worker that ended is started again: doubled each time, from the first
// on once one has run for longer than steady.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 10 * time.Second
	steady       = 10 * time.Second
)

type workerFlags struct {
	onChange, stateFile, barrier, policy, layout string
	settle, grace, rejoin, probation             time.Duration
}

func (f *workerFlags) bind(fs *pflag.FlagSet) {
	fs.StringVar(&f.onChange, "on-change", changeRestart, "what workers get on a change: restart, signal:`NAME` or ignore")
	fs.StringVar(&f.stateFile, "state-file", "", "keep the indices of all workers in `FILE`, as JSON")
	fs.StringVar(&f.barrier, "barrier", barrierAuto, "start an index when its former holder has stopped: off, index, epoch (no two totals at once), or auto (index if --on-change is restart, else off)")
	fs.Lookup("barrier").NoOptDefVal = barrierIndex
	fs.StringVar(&f.policy, "restart-policy", policyAlways, "start workers again that end: always, on-failure or never")
	fs.StringVar(&f.layout, "layout", "contiguous", "how the indices lie: contiguous, or sticky (a change moves few)")
	fs.DurationVar(&f.settle, "settle", balance.DefaultSettle, "how long members must be quiet before a change takes effect")
	fs.DurationVar(&f.grace, "grace", time.Second, "how long a worker may take to end before KILL; less than a third of --ttl, but for --barrier=off")
	fs.DurationVar(&f.probation, "probation", balance.DefaultProbation, "how long at most a PID that failed three times in a row gets nothing; 0: never")
	fs.DurationVar(&f.rejoin, "rejoin", 0, "keep the place of this PID for so long after it has gone")
}

// config fills in the balance.Config.
func (f *workerFlags) config(cfg *balance.Config, fs *pflag.FlagSet, ttl time.Duration) error {
	var err error
	if cfg.Layout, err = f.layOut(); err != nil {
		return err
	}
	switch f.policy {
	case policyAlways, policyOnFailure, policyNever:
	default:
		return usagef("--restart-policy %q: choose always, on-failure or never", f.policy)
	}
	if f.barrier == barrierAuto {
		f.barrier = barrierOff
		if f.onChange == changeRestart {
			f.barrier = barrierIndex
		}
	}
	switch f.barrier {
	case barrierOff:
	case barrierIndex:
		cfg.Mode = balance.StrictIndex
	case barrierEpoch:
		cfg.Mode = balance.StrictEpoch
	default:
		return usagef("--barrier %q: choose off, index, epoch or auto", f.barrier)
	}
	if !fs.Changed("grace") {
		f.grace = min(f.grace, ttl/3-killTime)
	}
	if f.grace < 0 || f.barrier != barrierOff && f.grace+killTime > ttl/3 {
		return usagef("--grace %v: it must be less than a third of --ttl %v, by %v", f.grace, ttl, killTime)
	}
	// The workers are stopped so long before others can have their indices.
	cfg.Grace, cfg.Settle, cfg.Rejoin, cfg.Probation = f.grace+killTime, f.settle, f.rejoin, f.longestProbation()
	_, err = f.signal()
	return err
}

// longestProbation is Config.Probation, where 0 is the default.
func (f *workerFlags) longestProbation() time.Duration {
	if f.probation == 0 {
		return -1
	}
	return f.probation
}

func (f *workerFlags) signal() (syscall.Signal, error) {
	name, ok := strings.CutPrefix(f.onChange, changeSignal)
	sig, known := changeSignals[strings.TrimPrefix(strings.ToUpper(name), "SIG")]
	switch {
	case ok && known:
		return sig, nil
	case f.onChange == changeRestart, f.onChange == changeIgnore:
		return 0, nil
	}
	return 0, usagef("--on-change %q: choose restart, ignore, or signal:HUP (or INT, TERM, and USR1, USR2 where there are such)", f.onChange)
}

// A crew is the commands that run for the indices of one share, one each. Its methods
// are called by the group's callbacks, one at a time.
type crew struct {
	app       *app
	flags     *workerFlags
	signal    syscall.Signal
	argv, env []string
	pid       fabric.PID
	base      context.Context // of the tenures; never ends

	joined chan struct{}             // closed when the next two are set
	share  func() balance.Share      // what the member has at this moment
	token  func(int) (uint64, error) // of an index that it has

	workers []*worker  // by local number; nil where there is none
	ended   chan error // capacity 1: why there is nothing left to run
	stop    sync.Once

	mu      sync.Mutex      // guards the fields below
	tenure  context.Context // of the workers hired since the last loss
	fire    context.CancelFunc
	alive   map[*child]bool
	running int  // workers that have not finished
	settled bool // no change is under way, and there are indices
	done    bool // a worker has finished
	code    int  // of the first that failed
}

// A worker is one place in the crew, and whatever runs there.
type worker struct {
	local, index int
	total        int // as of its start
	duty         atomic.Pointer[duty]
	cancel       context.CancelFunc
	gone         chan struct{}
	child        atomic.Pointer[child]
	finished     atomic.Bool // it ended, and is not started again
}

// revoke stops the workers of the indices, and waits.
func (c *crew) revoke(_ context.Context, indices []int) {
	c.dismiss(func(w *worker) bool { return slices.Contains(indices, w.index) })
}

// dismiss stops those that match, all at once, and waits for them.
func (c *crew) dismiss(match func(*worker) bool) {
	var leaving []*worker
	for i, w := range c.workers {
		if w != nil && match(w) {
			w.cancel()
			leaving = append(leaving, w)
			c.workers[i] = nil
		}
	}
	for _, w := range leaving {
		<-w.gone
	}
}

// change makes the crew work for s.
func (c *crew) change(s balance.Share) {
	c.settle(false)
	if s.First < 0 || c.flags.onChange == changeRestart {
		c.dismiss(func(w *worker) bool {
			return s.First < 0 || !s.Has(w.index) || w.total != s.Total && !w.finished.Load()
		})
	}
	free := c.place(s)
	if err := c.writeState(s); err != nil {
		c.app.log.Error("state file not written: workers that read it go by an older one", "err", err)
	}
	for _, w := range c.workers {
		if w == nil {
			continue
		}
		w.duty.Store(c.duty(w.local, w.index, s)) // for when it is started again
		if ch := w.child.Load(); ch != nil && c.signal != 0 {
			ch.notify(c.signal)
		}
	}
	for _, index := range free {
		c.hire(index, s)
	}
	c.settle(s.First >= 0)
	c.app.note("%v", s)
}

// duty is what a worker does under s; of its environment what is last wins.
func (c *crew) duty(local, index int, s balance.Share) *duty {
	env := append(slices.Clone(c.env),
		fmt.Sprint("FABRIC_WORKER_INDEX=", index), fmt.Sprint("FABRIC_WORKER_TOTAL=", s.Total),
		fmt.Sprint("FABRIC_WORKER_EPOCH=", s.Epoch), fmt.Sprint("FABRIC_WORKER_LOCAL=", local))
	return &duty{index, s.Total, env}
}

// place gives each worker that stays an index of s, and returns those that nobody has.
func (c *crew) place(s balance.Share) (free []int) {
	taken := map[int]bool{}
	for _, w := range c.workers {
		if w != nil && s.Has(w.index) {
			taken[w.index] = true
		}
	}
	for i := range s.Indices() {
		if !taken[i] {
			free = append(free, i)
		}
	}
	for _, w := range c.workers { // not in restart: those have gone
		if w != nil && !s.Has(w.index) && len(free) > 0 {
			w.index, free = free[0], free[1:]
		}
	}
	c.dismiss(func(w *worker) bool { return !s.Has(w.index) })
	return free
}

// hire starts a worker for index in the lowest free place.
func (c *crew) hire(index int, s balance.Share) {
	local := slices.Index(c.workers, nil)
	if local < 0 {
		local = len(c.workers)
		c.workers = append(c.workers, nil)
	}
	c.mu.Lock()
	if c.tenure == nil || c.tenure.Err() != nil {
		c.tenure, c.fire = context.WithCancel(c.base)
	}
	ctx, cancel := context.WithCancel(c.tenure)
	c.running++
	c.mu.Unlock()
	w := &worker{local: local, index: index, total: s.Total, cancel: cancel, gone: make(chan struct{})}
	w.duty.Store(c.duty(local, index, s))
	c.workers[local] = w
	go func() {
		defer close(w.gone)
		code, finished := c.run(ctx, w)
		w.finished.Store(finished)
		c.finish(code, finished)
	}()
}

// run runs one worker's command, again and again if the policy says so, until ctx ends
// or it has finished.
func (c *crew) run(ctx context.Context, w *worker) (code int, finished bool) {
	wait := firstBackoff
	for {
		began := time.Now()
		code, ok := c.runOnce(ctx, w)
		switch {
		case !ok:
			return 0, false
		case c.flags.policy == policyNever, c.flags.policy == policyOnFailure && code == exitOK:
			return code, true
		case time.Since(began) > steady:
			wait = firstBackoff
		}
		c.app.log.Warn("a worker ended, and will be started again", "worker", w.local, "code", code, "after", wait)
		select {
		case <-ctx.Done():
			return 0, false
		case <-time.After(wait):
		}
		wait = min(2*wait, lastBackoff)
	}
}

// runOnce runs the command once; it is not ok if ctx ended it, or it cannot be started.
func (c *crew) runOnce(ctx context.Context, w *worker) (code int, ok bool) {
	env, ok := c.admit(ctx, w)
	if !ok {
		return 0, false
	}
	ch, err := startChild(c.app.log, c.argv, env, nil, c.app.stdout, c.app.stderr)
	if err != nil {
		c.end(err)
		return 0, false
	}
	c.note(ch, true)
	defer c.note(ch, false)
	w.child.Store(ch)
	defer w.child.Store(nil)
	defer c.blame(ch)
	select {
	case <-ch.exited:
		if !ch.gone() {
			ch.stop(c.flags.grace) // what it left running in the background
		}
		return ch.code, ctx.Err() == nil
	case <-ctx.Done():
		ch.stop(c.flags.grace)
		return 0, false
	}
}

// note keeps account of what runs, for kill.
func (c *crew) note(ch *child, alive bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.alive[ch] = alive; !alive {
		delete(c.alive, ch)
	}
}

// kill ends everything at once.
func (c *crew) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ch := range c.alive {
		ch.kill()
	}
}

// finish notes that a worker has gone, or finished its work.
func (c *crew) finish(code int, finished bool) {
	c.mu.Lock()
	c.running--
	if finished {
		c.done, c.code = true, cmp.Or(c.code, code)
	}
	c.mu.Unlock()
	c.look()
}

// settle notes whether the crew is complete.
func (c *crew) settle(settled bool) {
	c.mu.Lock()
	c.settled = settled && (c.tenure == nil || c.tenure.Err() == nil)
	c.mu.Unlock()
	c.look()
}

// look ends the crew if it is complete and has finished.
func (c *crew) look() {
	c.mu.Lock()
	over, code := c.settled && c.done && c.running == 0, c.code
	c.mu.Unlock()
	switch {
	case over && code == exitOK:
		c.end(nil)
	case over:
		c.end(&exitError{code: code})
	}
}

// end says that there is nothing left to run.
func (c *crew) end(err error) {
	c.stop.Do(func() { c.ended <- err })
}

// work runs argv for each index until a signal, the end of the node, or until nothing
// is left to run.
func (a *app) work(ctx context.Context, ep endpoint, cfg balance.Config, f *workerFlags, argv []string) error {
	signal, err := f.signal()
	if err == nil {
		err = lookCommand(argv[0])
	}
	if err != nil {
		return err
	}
	ncfg := a.config(ep, false)
	ncfg.Inbox = fabric.Inbox{Off: true}
	node, err := a.join(ctx, ncfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	c := &crew{
		app: a, flags: f, signal: signal, argv: argv, pid: node.PID(), base: context.WithoutCancel(ctx),
		env: append(os.Environ(), "FABRIC_PID="+string(node.PID())), ended: make(chan error, 1), alive: map[*child]bool{},
		joined: make(chan struct{}),
	}
	if err := c.writeState(balance.Share{First: -1}); err != nil { // it may be left of a former run, too
		return errors.Join(usagef("--state-file: %w", err), a.leave(ctx, node, a.opts.timeout))
	}
	kill := c.kill
	a.abort.Store(&kill)
	defer a.abort.Store(nil)
	cfg.OnChange = c.change
	if cfg.Mode != balance.Default {
		cfg.OnRevoke = c.revoke
	}
	limited, cancel := context.WithTimeout(ctx, a.opts.timeout+3*a.opts.ttl)
	g, err := balance.Join(limited, node, cfg)
	cancel()
	guarding, stop := context.WithCancel(c.base)
	var guard sync.WaitGroup
	if err == nil {
		c.begin(g.Share, g.Token)
		guard.Go(func() { c.guard(guarding, g) })
		err = c.await(ctx, g)
	} else if ctx.Err() != nil {
		err = nil
	}
	a.note("stopping the workers")
	leaveErr := a.leave(ctx, node, a.opts.timeout+f.grace+killTime)
	if leaveErr != nil {
		kill() // the callbacks could not, in time
	}
	stop()
	guard.Wait()
	return cmp.Or(err, leaveErr)
}

// await waits for the end.
func (c *crew) await(ctx context.Context, g *balance.Group) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-c.ended:
		return err
	case <-g.Context().Done():
		return &exitError{code: exitLost, err: fmt.Errorf("the place in the group is lost: %w", context.Cause(g.Context()))}
	}
}

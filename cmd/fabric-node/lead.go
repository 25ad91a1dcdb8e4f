package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

// killTime is kept free at the end of the grace, for KILL to take effect.
const killTime = 100 * time.Millisecond

// lostPatience bounds leaving after the leadership was lost, which usually means
// that the server cannot be reached.
const lostPatience = time.Second

const leadUsage = "NAME -- COMMAND [ARGUMENT]..."

// standBack is how long --retry leaves the leadership to others who asked for it.
const standBack = time.Second

type leadFlags struct {
	grace    time.Duration
	wait     time.Duration
	onLoss   lossAction
	retry    bool
	failover string
	transfer bool
	stdin    bool
	events   string
	master   master

	waits bool // wait was set
}

func newLead(a *app) *cobra.Command {
	var f leadFlags
	cmd := &cobra.Command{
		Use:   "lead [flags] " + leadUsage,
		Short: "Run a command only while leading an election",
		Long: `Wait to lead election NAME, then run COMMAND, without a shell, in a process group
of its own. The leadership is given back when nothing of the group is left. On Linux
what leaves the group (timeout, set -m, setsid) counts as part of it, but for signal:NAME.

If the leadership is lost, the group gets TERM, after --grace KILL, and is gone
before another process can lead; the exit code is 75. So it is when another asked
for the leadership (transfer, resign), which is given when the group is gone. With
--retry fabric-node waits to lead again instead, and starts COMMAND anew. On INT,
TERM, QUIT or HUP (unless under nohup) the group gets TERM and is waited for; a second
signal, but for a HUP, kills it. COMMAND's own exit code passes through; where
fabric-node itself failed it is 125, or 2 to 5 before COMMAND was started.

A fabric-node that is stopped (Ctrl-Z, STOP) supervises nothing: COMMAND goes on, also
when the lease has run out and another leads, until fabric-node is continued.

--on-loss kill sends KILL at once. --on-loss signal:HUP sends HUP (or INT, QUIT,
USR1, USR2, WINCH), --on-loss ignore nothing; COMMAND then goes on while another
leads, which is only right if all it does is fenced by the token: see
docs/FENCING.md.

With --failover proof this process leads within milliseconds after the leader's has
ended on the same machine, killed or not (Linux). What the leader's COMMAND has
started and left behind may still run then.

COMMAND finds FABRIC_PID, FABRIC_LEADER_NAME, FABRIC_LEADER_TERM and
FABRIC_LEADER_TOKEN in its environment. The token grows with every term: have it
checked where the work is written down. Its stdin is /dev/null without --stdin.`,
		Example: `  fabric-node lead -k shop nightly -- ./backup.sh --full
  fabric-node lead -k shop nightly --ttl 10s --grace 4s -- make report
  fabric-node lead -k shop nightly --wait 0s -- ./backup.sh   # only if nobody leads
  fabric-node lead -k shop web --retry --transfer-on-term -- ./serve
  fabric-node lead -k shop feed --events /run/feed.ndjson -- sh -c 'consume "$FABRIC_LEADER_TOKEN"'`,
		Args: leadArgs,

		DisableFlagsInUseLine: true,
	}
	cmd.RunE = a.untilSignal(func(ctx context.Context, args []string) error {
		a.wraps()
		return wrapperError(a.lead(ctx, &f, cmd.Flags(), args[0], args[1:]))
	})
	fs := cmd.Flags()
	fs.DurationVar(&f.grace, "grace", time.Second, "how long COMMAND may take to end before KILL; less than half of --ttl")
	fs.DurationVar(&f.wait, "wait", 0, "how long to wait to lead; 0s: not at all, but for one who was called to lead (default: for ever)")
	fs.Var(&f.onLoss, "on-loss", "what to do to COMMAND when the leadership is lost: `term`, kill, signal:NAME or ignore")
	fs.StringVar(&f.failover, "failover", "lease", "take over when the leader's `lease` has run out, or also on proof: its process, on this machine, has ended")
	fs.BoolVar(&f.retry, "retry", false, "after a loss wait to lead again, instead of exit code 75")
	fs.BoolVar(&f.transfer, "transfer-on-term", false, "on a signal hand over to who comes first, and see it lead")
	fs.BoolVar(&f.stdin, "stdin", false, "pass stdin on to COMMAND")
	fs.StringVar(&f.events, "events", "", "append the events of run, as ndjson, to `FILE`")
	f.master.bindEmbedded(fs)
	return cmd
}

func leadArgs(cmd *cobra.Command, args []string) error {
	usage := cmd.CommandPath() + " " + leadUsage
	switch dash := cmd.ArgsLenAtDash(); {
	case dash < 0:
		return fmt.Errorf("-- is missing before the command: %s", usage)
	case dash == 0:
		return fmt.Errorf("NAME is missing before --: %s", usage)
	case dash > 1:
		return fmt.Errorf("%q is one argument too many before --: %s", args[1], usage)
	case len(args) == 1:
		return fmt.Errorf("the command is missing after --: %s", usage)
	}
	return nil
}

// wrapperError keeps exit code 1 for the command.
func wrapperError(err error) error {
	if _, ok := errors.AsType[*exitError](err); !ok && exitCode(err) == exitFailed {
		return &exitError{code: exitWrapper, err: err}
	}
	return err
}

// errDone ends a member whose command has ended.
var errDone = errors.New("command ended")

// A sideWriter writes what the command does not depend on: a failure is logged once, and so
// is a pipe that is full for flushTime.
type sideWriter struct {
	w      *os.File
	log    *slog.Logger
	failed bool
}

func (s *sideWriter) Write(p []byte) (int, error) {
	if !s.failed {
		_ = s.w.SetWriteDeadline(time.Now().Add(flushTime)) // a file has none, and needs none
		if _, err := s.w.Write(p); err != nil {
			s.failed = true
			s.log.Error("events are lost from here on", "err", err)
		}
	}
	return len(p), nil
}

func (a *app) lead(ctx context.Context, f *leadFlags, fs *pflag.FlagSet, name string, argv []string) error {
	if f.grace < 0 || f.grace >= a.opts.ttl/2 {
		return usagef("--grace %v: it must be less than half of --ttl %v", f.grace, a.opts.ttl)
	}
	f.waits = fs.Changed("wait")
	if f.wait < 0 {
		return usagef("--wait %v: it cannot be negative", f.wait)
	}
	if f.failover != "lease" && f.failover != "proof" {
		return usagef("--failover %s: it is not lease or proof", f.failover)
	}
	if f.retry && f.stdin {
		return usagef("--retry and --stdin: the input can be read once only")
	}
	if f.stdin && isTerminal(a.stdin) {
		return usagef("--stdin: a terminal cannot be passed on to another process group; use a file or a pipe")
	}
	if err := lookCommand(argv[0]); err != nil {
		return err
	}
	out := io.Discard
	if f.events != "" {
		// To open a pipe that nobody reads would wait for a reader, whatever the signals say.
		file, err := os.OpenFile(f.events, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o666)
		if errors.Is(err, syscall.ENXIO) {
			return usagef("--events: nobody reads the pipe %s; start its reader first", f.events)
		}
		if err != nil {
			return usagef("--events: %w", err)
		}
		defer file.Close()
		out = &sideWriter{w: file, log: a.log}
	}
	ep, stopServer, err := a.server(ctx, &f.master, fs)
	if err != nil {
		return err
	}
	err = a.leadJoined(ctx, ep, f, name, argv, newEvents(out, false))
	if stopErr := stopServer(); stopErr != nil {
		a.log.Error("stop the server", "err", stopErr)
	}
	return err
}

func (a *app) leadJoined(ctx context.Context, ep endpoint, f *leadFlags, name string, argv []string, out *events) error {
	cfg := a.config(ep, false)
	cfg.Inbox = fabric.Inbox{Off: true} // nobody would read it
	node, err := a.join(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	m := newMember(ctx, a, node, out)
	m.out.emit(m.joined(node.Incarnation()))
	m.watchNode()
	result := a.campaign(ctx, m, f, name, argv)
	if err := m.wait(ctx); err != nil && result == nil {
		// The work is done and its outcome known; the lease runs out by itself.
		a.log.Warn("left in disorder", "err", err)
	}
	return result
}

// campaign leads once, or with --retry until the command ends by itself. It returns
// when the command's whole group is gone and the leadership is given back.
func (a *app) campaign(ctx context.Context, m *member, f *leadFlags, name string, argv []string) error {
	defer m.cancel(errDone)
	// The term's context ends this long before another process may lead.
	ahead := min(f.grace+killTime, (a.opts.ttl-1)/2)
	cfg := election.Config{Name: name, Grace: ahead, Logger: a.log}
	if f.failover == "proof" {
		cfg.Failover = election.Proof
	}
	e, err := election.New(m.node, cfg)
	if err != nil {
		return err
	}
	m.leaders(name, e)
	for {
		term, err := a.await(ctx, m, f, e, name)
		if term == nil {
			return err
		}
		a.note("leading %s, term %d: starting %s", name, term.Number(), argv[0])
		err = a.hold(ctx, m, f, name, term, argv, max(ahead-killTime, 0))
		handedOver := errors.Is(err, election.ErrHandOver)
		if !f.retry || ctx.Err() != nil || !handedOver && !errors.Is(err, election.ErrLost) {
			return err
		}
		a.log.Warn("waiting to lead again", "election", name, "err", err)
		if handedOver { // it is another's turn
			timer := time.NewTimer(standBack)
			select {
			case <-timer.C:
			case <-m.ctx.Done():
			}
			timer.Stop()
		}
	}
}

// await waits to lead. No term and no error: it was asked to stop.
func (a *app) await(ctx context.Context, m *member, f *leadFlags, e *election.Election, name string) (term *election.Term, err error) {
	a.note("waiting to lead %s", name)
	wait := m.ctx
	if f.waits {
		var cancel context.CancelFunc
		limit := f.wait
		if limit == 0 {
			limit = a.opts.timeout // of finding out
		}
		wait, cancel = context.WithTimeout(m.ctx, limit)
		defer cancel()
	}
	if f.waits && f.wait == 0 {
		term, err = e.Try(wait)
	} else {
		term, err = e.Campaign(wait)
	}
	switch {
	case err == nil:
		return term, nil
	case ctx.Err() != nil:
		return nil, nil
	case f.waits && (errors.Is(err, election.ErrTaken) || errors.Is(err, context.DeadlineExceeded)):
		return nil, &exitError{code: exitTimeout, err: fmt.Errorf("not leading %s within %v: %w", name, f.wait, err), hint: "see: fabric-node leader " + name + " " + a.where()}
	}
	return nil, fmt.Errorf("campaign for %s: %w", name, err)
}

// hold runs the command under the term, and gives the leadership back. limit is the
// grace if it is lost.
func (a *app) hold(ctx context.Context, m *member, f *leadFlags, name string, term *election.Term, argv []string, limit time.Duration) error {
	var stdin io.Reader
	if f.stdin {
		stdin = a.stdin
	}
	giveBack := func() { a.giveBack(ctx, m, f, term) }
	if !term.Valid() { // this process was stopped, or the machine slept
		giveBack()
		return lostError(cmp.Or(context.Cause(term.Context()), election.ErrLost))
	}
	c, err := startChild(a.log, argv, leaderEnv(os.Environ(), m.node.PID(), name, term), stdin, a.stdout, a.stderr)
	if err == nil {
		err = a.supervise(ctx, c, watch{term.Context(), f.onLoss, f.grace, limit, giveBack})
	}
	giveBack()
	return err
}

// giveBack gives back what is left of the term; what was lost is the next leader's
// already. It may be called again.
func (a *app) giveBack(ctx context.Context, m *member, f *leadFlags, term *election.Term) {
	cause := context.Cause(term.Context())
	if errors.Is(cause, election.ErrLost) {
		// There is nothing to give back, and a supervisor waits to start us again.
		if !f.retry {
			m.patience = min(m.patience, lostPatience)
		}
		return
	}
	if errors.Is(cause, election.ErrResigned) {
		return
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.opts.timeout)
	defer cancel()
	if f.transfer && ctx.Err() != nil && cause == nil {
		l, err := term.Transfer(ending, "")
		if err == nil {
			a.note("%s leads", l.PID)
			return
		}
		a.log.Warn("nobody took over", "err", err)
	}
	if err := term.Resign(ending); err != nil {
		a.log.Warn("resign", "err", err)
	}
}

// leaderEnv appends what the command should know; what is last wins.
func leaderEnv(env []string, pid fabric.PID, name string, term *election.Term) []string {
	return append(env,
		"FABRIC_PID="+string(pid),
		"FABRIC_LEADER_NAME="+name,
		fmt.Sprintf("FABRIC_LEADER_TERM=%d", term.Number()),
		fmt.Sprintf("FABRIC_LEADER_TOKEN=%d", term.Token()))
}

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
)

// An app is one invocation of the program.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	told           io.Writer // notes, logs and errors on their way to stderr; never waits
	opts           options
	log            *slog.Logger

	signals  chan os.Signal         // what run acts on
	started  bool                   // a command's own code runs; errors before it are usage errors
	graceful atomic.Bool            // the first signal asks the command to stop, instead of stopping it
	abort    atomic.Pointer[func()] // what a second signal must do before the process ends
	hideJSON bool                   // stdout belongs to a wrapped command: no error object there

	own atomic.Pointer[[]string] // secrets of servers that this process started
}

// A signalError is the cause of a context that a signal ended.
type signalError struct{ sig syscall.Signal }

func (e signalError) Error() string { return "interrupted by " + e.sig.String() }

// run executes one command line and returns the exit code. The first INT or TERM
// ends the context of a long-running command, which then leaves in order; it ends
// a one-shot command at once, as the second signal ends any. To what wraps a command
// HUP and QUIT are such signals, too, but a HUP is never the second: where a session
// ends, the shell and the terminal both send it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	lines := newAside(stderr)
	defer lines.close()
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, told: lines, log: slog.New(slog.DiscardHandler)}
	a.signals = make(chan os.Signal, 2) // both signals of an impatient user are kept
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	signal.Notify(a.signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(a.signals)
	// With a handler installed, writing to a closed pipe is an error that a command
	// can leave on, not the end of the process. Nobody reads the channel.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)

	done := make(chan error, 1) // run may return first, on a signal
	go func() { done <- a.execute(ctx, args) }()
	for seen := 0; ; {
		select {
		case err := <-done:
			return a.report(err, args)
		case s := <-a.signals:
			sig, _ := s.(syscall.Signal)
			if sig == syscall.SIGHUP && seen > 0 {
				continue
			}
			if seen++; seen > 1 || !a.graceful.Load() {
				if f := a.abort.Load(); f != nil {
					(*f)()
				}
				return exitSignal + int(sig)
			}
			cancel(signalError{sig})
		}
	}
}

func (a *app) execute(ctx context.Context, args []string) error {
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !a.started {
		return asUsage(err, cmd.CommandPath())
	}
	return err
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "fabric-node",
		Short: "Join, message, elect and balance over NATS",
		Long: `fabric-node makes this process a member of a fabric: a set of processes that
share a NATS server under one name, know each other, send each other messages,
elect leaders and divide work.

Exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 cannot connect or no
JetStream, 4 not found, 5 timeout, 75 leadership lost, 125 failed while wrapping a
command, 126/127 the command cannot be executed/was not found, 128+n ended by
signal n. A wrapped command's own code passes through.`,
		Example: `  fabric-node demo                           # all of it, in one process
  fabric-node server &                       # a server for this machine
  fabric-node run -k shop -i web-1 --print   # a member
  fabric-node send -k shop web-1 hello       # a message to it
  fabric-node lead -k shop nightly -- ./backup.sh`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.opts.resolve(cmd.Flags(), os.LookupEnv); err != nil {
				return err
			}
			a.log = a.newLogger(a.opts)
			return nil
		},
	}
	a.opts.bind(root.PersistentFlags())
	root.SetGlobalNormalizationFunc(normalize)
	root.SetFlagErrorFunc(flagError)
	root.AddGroup(
		&cobra.Group{ID: "cluster", Title: "Members:"},
		&cobra.Group{ID: "message", Title: "Messages:"},
		&cobra.Group{ID: "coord", Title: "Coordination:"},
		&cobra.Group{ID: "other", Title: "Server and others:"},
	)
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("cluster", newRun(a), newMembers(a), newWatch(a))
	group("message", newSend(a), newRecv(a), newBroadcast(a), newRequest(a), newPublish(a), newAnycast(a), newGather(a), newMail(a), newTap(a))
	group("coord", newLeader(a), newLead(a), newTransfer(a), newResign(a), newElections(a), newBalance(a), newEvict(a))
	group("other", newDemo(a), newServer(a), newRepair(a), newPermissions(a), newDoctor(a), newVersion(a))
	root.SetHelpCommand(newHelp("other"))
	root.SetCompletionCommandGroupID("other")
	return root
}

// A command is the code of a subcommand.
type command func(ctx context.Context, args []string) error

// oneShot runs f as a command that a signal simply ends.
func (a *app) oneShot(f command) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return f(cmd.Context(), args)
	}
}

// untilSignal runs f as a command whose context the first signal ends, and which
// then has something to put in order.
func (a *app) untilSignal(f command) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		a.graceful.Store(true)
		return f(cmd.Context(), args)
	}
}

// wraps says that a command will be run: whatever would end this process without a
// word must stop that first. A HUP that is ignored (nohup) stays so.
func (a *app) wraps() {
	a.hideJSON = true
	signal.Notify(a.signals, syscall.SIGQUIT)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(a.signals, syscall.SIGHUP)
	}
}

// newHelp is cobra's help command, except that a command that is not there is an error.
func newHelp(group string) *cobra.Command {
	return &cobra.Command{
		Use:               "help [COMMAND]",
		Short:             "Help about any command",
		GroupID:           group,
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil }, // whatever the environment says
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) > 0 {
				err = fmt.Errorf("there is no command %q", strings.Join(args, " "))
			}
			if err != nil {
				return err
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
			if c, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
				for _, sub := range c.Commands() {
					if sub.IsAvailableCommand() && strings.HasPrefix(sub.Name(), begun) {
						names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// exactly accepts the arguments that usage names, at least low and at most high.
func exactly(low, high int, usage string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < low:
			return fmt.Errorf("an argument is missing: %s %s", cmd.CommandPath(), usage)
		case len(args) > high:
			return fmt.Errorf("%q is one argument too many: %s %s", args[high], cmd.CommandPath(), usage)
		}
		return nil
	}
}

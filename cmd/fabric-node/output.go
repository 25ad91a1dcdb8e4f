package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/embedded"
	"github.com/natsfabric/natsfabric/fabric"
)

// Output formats. A stream of objects is the same in json and ndjson: one object
// a line. A single object is indented in json.
const (
	formatTable  = "table"
	formatJSON   = "json"
	formatNDJSON = "ndjson"
)

// Exit codes. A wrapped command's own code passes through.
const (
	exitOK            = 0
	exitFailed        = 1
	exitUsage         = 2   // usage or bad input
	exitConnect       = 3   // cannot connect, or no JetStream
	exitNotFound      = 4   // no such member, no leader
	exitTimeout       = 5   // --timeout
	exitLost          = 75  // leadership lost; EX_TEMPFAIL: start me again
	exitWrapper       = 125 // fabric-node failed while wrapping a command
	exitNotExecutable = 126
	exitNoCommand     = 127
	exitSignal        = 128 // plus the signal's number
)

// An exitError is an error that knows its exit code. With err nil it is silent.
type exitError struct {
	code int
	err  error
	hint string // the next command to run
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// see sets the hint to running cmd.
func (e *exitError) see(cmd string) *exitError {
	e.hint = "see: " + cmd
	return e
}

func usagef(format string, args ...any) *exitError {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// asUsage makes err, which came before a command's own code ran, a usage error.
func asUsage(err error, path string) error {
	if _, ok := errors.AsType[*exitError](err); ok {
		return err
	}
	return usagef("%w", err).see(path + " --help")
}

// exitCode is the one mapping of errors to exit codes.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	if e, ok := errors.AsType[signalError](err); ok {
		return exitSignal + int(e.sig)
	}
	if _, ok := errors.AsType[*fabric.NameError](err); ok {
		return exitUsage
	}
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
	}
	switch {
	case is(fabric.ErrConfig, balance.ErrConfig, balance.ErrMismatch, election.ErrConfig,
		embedded.ErrConfig, embedded.ErrUnprotected, embedded.ErrStore, embedded.ErrStoreMode,
		fabric.ErrTooLarge, fabric.ErrNotCandidate):
		return exitUsage
	case is(fabric.ErrConnect, fabric.ErrNoJetStream, fabric.ErrOldServer, fabric.ErrPermission,
		fabric.ErrDisconnected, fabric.ErrConnClosed):
		return exitConnect
	case is(fabric.ErrNoPeer, fabric.ErrUnreachable, fabric.ErrNoReceiver, fabric.ErrNoMail, election.ErrNoLeader, election.ErrNoCandidate):
		return exitNotFound
	case is(context.DeadlineExceeded, nats.ErrTimeout):
		return exitTimeout
	case is(syscall.EPIPE):
		return exitSignal + int(syscall.SIGPIPE)
	}
	return exitFailed
}

// hint says what to run next, if the error does not say it itself.
func (a *app) hint(err error) string {
	if e, ok := errors.AsType[*exitError](err); ok && e.hint != "" {
		return e.hint
	}
	where := a.where()
	switch {
	case errors.Is(err, fabric.ErrPIDInUse):
		return "take another --pid, or stop that process; see: fabric-node members " + where
	case errors.Is(err, fabric.ErrNoJetStream):
		return "start the server with JetStream (nats-server -js), or: fabric-node server"
	case errors.Is(err, fabric.ErrOldServer):
		return "NATS 2.11 or newer is needed; this program brings one: fabric-node server"
	case errors.Is(err, fabric.ErrPermission):
		return "allow that subject to this user in the server's configuration"
	case errors.Is(err, fabric.ErrNotCandidate):
		return fmt.Sprintf("run it with --role candidate (now %v), as a user who may", a.opts.role)
	case errors.Is(err, nats.ErrAuthorization):
		return "name a context of that server (--context, as \"ready\" of fabric-node server says), or set NATS_USER and NATS_PASSWORD or NATS_CREDS"
	case errors.Is(err, fabric.ErrForeignRecord):
		return "see who may write there: fabric-node doctor " + where
	case errors.Is(err, fabric.ErrBucket):
		return "see what is wrong: fabric-node repair --dry-run " + where
	case errors.Is(err, fabric.ErrConnect) && errors.Is(err, os.ErrDeadlineExceeded):
		return "somebody takes connections there and does not answer: see whether that server is stopped or overloaded, or none of NATS"
	case errors.Is(err, fabric.ErrConnect):
		return "start a server (fabric-node server), name one (-s URL or FABRIC_SERVER), or let a member bring its own (fabric-node run --embedded)"
	case errors.Is(err, nats.ErrNoServers): // of a command that needs a server and no fabric
		return "is a NATS server there? name it: -s URL or FABRIC_SERVER"
	case errors.Is(err, embedded.ErrUnprotected):
		return "give it --tls-cert and --tls-key; or --insecure, where nobody else can reach it; or an --addr on loopback"
	case errors.Is(err, embedded.ErrAddrInUse):
		return "join the server that is there, without --embedded; or choose another --addr"
	case errors.Is(err, embedded.ErrStoreMode):
		return "a member of a cluster needs its --routes; to move the streams of a server by itself, start the cluster on empty stores, then: fabric-node server migrate --from OLD-STORE -s URL"
	case errors.Is(err, embedded.ErrStoreInUse):
		return "choose another --store"
	case errors.Is(err, fabric.ErrNoMail):
		return "a member of the role admin with a mailbox makes the mail stream: fabric-node run --mailbox " + where + " -i PID; or: fabric-node repair --mailbox PID " + where
	case isField(err, "Mailbox"):
		return "name this process with --pid, so that its mail finds it"
	case errors.Is(err, fabric.ErrNoReceiver):
		return "members that serve it, or have joined it, are started with: fabric-node run --serve SERVICE, or --topic TOPIC " + where
	case errors.Is(err, fabric.ErrUnreachable):
		return "it is here and takes no messages, as lead and balance do, or has just ended; see: fabric-node members " + where
	case errors.Is(err, fabric.ErrNoPeer):
		return "see who is here: fabric-node members " + where
	case isField(err, "Lease"):
		return fmt.Sprintf("set --ttl (now %v)", a.opts.ttl)
	case isField(err, "first", "total", "Workers"):
		return "set -n (workers); of a static cluster so that -I (first index) + -n is at most -T (total)"
	case errors.Is(err, balance.ErrMismatch):
		return "give all members of group " + a.opts.group + " the same --partitions, --per-zone, --layout and --barrier, or choose another -p; see: fabric-node balance --watch -p " + a.opts.group + " " + where
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("allow more with --timeout (now %v), or see what is wrong: fabric-node doctor %s", a.opts.timeout, where)
	}
	return ""
}

// where names the fabric in a command line.
func (a *app) where() string { return fmt.Sprintf("-k %s -e %s", a.opts.cluster, a.opts.env) }

// isField reports whether err is about one of the fields of a Config, or arguments.
func isField(err error, names ...string) bool {
	if e, ok := errors.AsType[*fabric.ConfigError](err); ok {
		return slices.Contains(names, e.Field)
	}
	if e, ok := errors.AsType[*balance.ConfigError](err); ok {
		return slices.Contains(names, e.Field)
	}
	return false
}

// report prints the error, if there is one to print, and returns the exit code.
func (a *app) report(err error, args []string) int {
	code := exitCode(err)
	e, silent := errors.AsType[*exitError](err)
	silent = silent && e.err == nil
	if _, ok := errors.AsType[signalError](err); ok || silent || err == nil || errors.Is(err, syscall.EPIPE) {
		return code
	}
	message, hint := a.redact(err.Error()), a.redact(a.hint(err))
	fmt.Fprintln(a.told, "error:", message)
	if hint != "" {
		fmt.Fprintln(a.told, "hint: ", hint)
	}
	if a.wantsJSON(args) && !a.hideJSON {
		newEncoder(a.stdout).Encode(errorObject{errorBody{code, message, hint}})
	}
	return code
}

type errorObject struct {
	Error errorBody `json:"error"`
}

type errorBody struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (a *app) table() bool { return a.opts.output == formatTable }

// wantsJSON is table's opposite, also when the flags could not be parsed to their end.
func (a *app) wantsJSON(args []string) bool {
	format := a.opts.output
	if !a.started {
		format = os.Getenv("FABRIC_OUTPUT")
		for i, arg := range args {
			v, long := strings.CutPrefix(arg, "--output")
			v, short := strings.CutPrefix(v, "-o")
			switch {
			case arg == "--":
				return format == formatJSON || format == formatNDJSON
			case !long && !short:
			case v == "" && i+1 < len(args):
				format = args[i+1]
			default:
				format = strings.TrimPrefix(v, "=")
			}
		}
	}
	return format == formatJSON || format == formatNDJSON
}

func newEncoder(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc
}

// object prints the one object of a command.
func (a *app) object(v any) error {
	enc := newEncoder(a.stdout)
	if a.opts.output == formatJSON {
		enc.SetIndent("", "  ")
	}
	return enc.Encode(v)
}

// note tells the person at the terminal something that is no data. It does not wait.
func (a *app) note(format string, args ...any) {
	if !a.opts.quiet {
		fmt.Fprintf(a.told, "fabric-node: %s\n", a.redact(fmt.Sprintf(format, args...)))
	}
}

// newLogger logs to stderr what the libraries have to say, without secrets. Who logs
// does not wait.
func (a *app) newLogger(o options) *slog.Logger {
	level := slog.LevelWarn
	switch {
	case o.verbose:
		level = slog.LevelDebug
	case o.quiet:
		level = slog.LevelError
	}
	return slog.New(slog.NewTextHandler(a.told, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(_ []string, at slog.Attr) slog.Attr {
			switch v := at.Value.Any().(type) {
			case string:
				at.Value = slog.StringValue(a.redact(v))
			case error:
				at.Value = slog.StringValue(a.redact(v.Error()))
			}
			return at
		},
	}))
}

// isTerminal reports whether f is a terminal: a character device, but not the null one.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	st, err := file.Stat()
	if err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(st, null)
}

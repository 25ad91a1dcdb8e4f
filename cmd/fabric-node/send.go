package main

import (
	"context"
	"errors"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/natsfabric/natsfabric/fabric"
)

// maxInput is the most that is read from stdin: the largest max_payload that a
// NATS server can be configured with.
const maxInput = 64 << 20

func newSend(a *app) *cobra.Command {
	var data input
	var file string
	cmd := &cobra.Command{
		Use:   "send PID [DATA or -]",
		Short: "Send a message, or a file, to one member",
		Long: `Send a message to the member PID, and see it off: exit code 4 says that nobody
received it. Without DATA the message is empty; - reads it from stdin.

--mode says what is promised: fast, at most once; acked, when web-1 has it in its
inbox; reliable, once and in order while both live; durable, when the fabric's mail
stream keeps it, for a member that may be down, and that receives it with run
--mailbox.

With --file, a file of any size goes to a member that runs fabric-node recv, or
accepts streams. It may have to read the last 4 MiB when the exit code is 0.`,
		Example: `  fabric-node send -k shop web-1 "deploy"
  fabric-node send -k shop web-9 --mode durable "when you are back"
  fabric-node send -k shop web-1 --count 3 job-   # job-1, job-2, job-3
  tar c . | fabric-node send -k shop web-1 -
  fabric-node send -k shop store --file backup.tar`,
		Args: exactly(1, 2, "PID [DATA or -]"),
		RunE: a.oneShot(func(ctx context.Context, args []string) error {
			to := fabric.PID(args[0])
			if to == fabric.Everyone {
				return usagef("%q is no PID", to).see("fabric-node broadcast --help")
			}
			if file != "" {
				if len(args) > 1 || data.numbered() {
					return usagef("--file excludes DATA and --count")
				}
				return a.sendFile(ctx, file, to)
			}
			return a.send(ctx, &data, args[1:], to)
		}),
	}
	data.bind(cmd.Flags())
	cmd.Flags().StringVar(&file, "file", "", "send the file at `PATH`, or stdin for -, as a stream")
	data.bindMode()
	return cmd
}

func newBroadcast(a *app) *cobra.Command {
	var data input
	cmd := &cobra.Command{
		Use:   "broadcast [DATA or -]",
		Short: "Send a message to every member",
		Long: `Send a message to all members there are. Without DATA the message is empty; -
reads it from stdin. With --mode durable it goes to those with a mailbox who are down,
too.`,
		Example: `  fabric-node broadcast -k shop "reload"
  fabric-node broadcast -k shop - <config.json`,
		Args: exactly(0, 1, "[DATA or -]"),
		RunE: a.oneShot(func(ctx context.Context, args []string) error {
			return a.send(ctx, &data, args, fabric.Everyone)
		}),
	}
	data.bind(cmd.Flags())
	data.bindMode()
	return cmd
}

type sentObject struct {
	To    fabric.PID `json:"to,omitempty"`
	Topic string     `json:"topic,omitempty"`
	Sent  int        `json:"sent"`
	Bytes int        `json:"bytes"`
}

func (a *app) send(ctx context.Context, data *input, args []string, to fabric.PID) error {
	if err := data.read(a.stdin, args); err != nil {
		return err
	}
	return a.observe(ctx, func(node *fabric.Node) error {
		ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
		defer cancel()
		sent := sentObject{To: to, Topic: data.topic}
		for i := range data.len() {
			text := data.at(i)
			if err := node.SendMsg(ctx, &fabric.Message{To: to, Topic: data.topic, Mode: data.mode.Mode, Data: text}); err != nil {
				return err
			}
			sent.Sent++
			sent.Bytes += len(text)
		}
		if err := node.Flush(ctx); err != nil {
			return err
		}
		if !a.table() {
			return a.object(sent)
		}
		return nil
	})
}

// An input is the DATA argument, and how often it is sent.
type input struct {
	count int
	text  []byte
	topic string // it is published to, if any
	mode  mode
	flags *pflag.FlagSet
}

func (in *input) bind(fs *pflag.FlagSet) {
	in.flags = fs
	fs.IntVar(&in.count, "count", 1, "send `N` messages: DATA with 1 to N appended")
}

// A mode is the value of --mode.
type mode struct{ fabric.Mode }

func (m *mode) Type() string   { return "MODE" }
func (m *mode) String() string { return max(m.Mode, fabric.Fast).String() }

func (m *mode) Set(s string) error {
	for _, m.Mode = range []fabric.Mode{fabric.Fast, fabric.Acked, fabric.Reliable, fabric.Durable} {
		if m.Mode.String() == s {
			return nil
		}
	}
	return errors.New("choose fast, acked, reliable or durable")
}

// bindMode is for messages that are not answered.
func (in *input) bindMode() {
	in.flags.Var(&in.mode, "mode", "what is promised: fast, acked, reliable or durable")
}

// read takes the data from the arguments, or from stdin for "-".
func (in *input) read(stdin io.Reader, args []string) error {
	if in.count < 1 {
		return usagef("--count %d: send at least one", in.count)
	}
	switch {
	case len(args) == 0:
	case args[0] != "-":
		in.text = []byte(args[0])
	default:
		text, err := io.ReadAll(io.LimitReader(stdin, maxInput+1))
		if err != nil {
			return usagef("read stdin: %w", err)
		}
		if len(text) > maxInput {
			return usagef("stdin has more than %d bytes, which no NATS server takes", maxInput)
		}
		in.text = text
	}
	return nil
}

func (in *input) len() int { return in.count }

// numbered reports whether --count was given; then also a single message has its
// number, so that a script may compute N.
func (in *input) numbered() bool { return in.flags.Changed("count") }

func (in *input) at(i int) []byte {
	if !in.numbered() {
		return in.text
	}
	return strconv.AppendInt(in.text[:len(in.text):len(in.text)], int64(i+1), 10)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/fabric"
)

func newRequest(a *app) *cobra.Command {
	var data input
	cmd := &cobra.Command{
		Use:   "request PID [DATA or -]",
		Short: "Send a request to one member and print its reply",
		Long: `Send a request to the member PID and write the reply's bytes to stdout, as they
are: a newline follows only on a terminal, and between replies with --count.`,
		Example: `  fabric-node request -k shop web-1 ping
  fabric-node request -k shop web-1 ping -o json | jq .rtt_ms
  fabric-node request -k shop web-1 --timeout 30s - <query.json >answer.json`,
		Args: exactly(1, 2, "PID [DATA or -]"),
		RunE: a.oneShot(func(ctx context.Context, args []string) error {
			return a.ask(ctx, &data, args, func(ctx context.Context, node *fabric.Node, text []byte) (*fabric.Message, error) {
				return node.Request(ctx, fabric.PID(args[0]), text)
			}, "run --echo")
		}),
	}
	data.bind(cmd.Flags())
	return cmd
}

type replyObject struct {
	From fabric.PID `json:"from"`
	payload
	RTT float64 `json:"rtt_ms"`
}

// ask sends args[1], as often as data says, and prints the replies of what args[0]
// names. who is the command that answers.
func (a *app) ask(ctx context.Context, data *input, args []string, f func(context.Context, *fabric.Node, []byte) (*fabric.Message, error), who string) error {
	if err := data.read(a.stdin, args[1:]); err != nil {
		return err
	}
	return a.observe(ctx, func(node *fabric.Node) error {
		for i := range data.len() {
			request := func(ctx context.Context) (*fabric.Message, error) { return f(ctx, node, data.at(i)) }
			if err := a.request(ctx, args[0], who, data.numbered(), request); err != nil {
				return err
			}
		}
		return nil
	})
}

// request makes one request of to, and prints the reply.
func (a *app) request(ctx context.Context, to, who string, newline bool, f func(context.Context) (*fabric.Message, error)) error {
	ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
	defer cancel()
	start := time.Now()
	reply, err := f(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return &exitError{exitTimeout, err, fmt.Sprintf("see that %s answers requests (fabric-node %s does), or allow more with --timeout (now %v)", to, who, a.opts.timeout)}
	}
	if err != nil {
		return err
	}
	rtt := time.Since(start)
	if !a.table() {
		return a.object(replyObject{reply.From, newPayload(reply.Data), milliseconds(rtt)})
	}
	out := reply.Data
	if newline || isTerminal(a.stdout) {
		out = append(out, '\n')
	}
	_, err = a.stdout.Write(out)
	return err
}

// milliseconds is d to the microsecond.
func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Microsecond)) / 1000
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/fabric"
)

// defaultSilence ends a question to a topic, of which nobody knows who has joined it.
const defaultSilence = time.Second

func newGather(a *app) *cobra.Command {
	var data input
	var q fabric.Query
	cmd := &cobra.Command{
		Use:   "gather [DATA or -]",
		Short: "Ask all members and print their replies",
		Long: `Send a request to all members, or with --topic to those who have joined it, and print
each reply as it comes. It ends when everyone has answered or failed, or as --replies
and --silence say. Members that run --echo answer. Who failed is an error: then the
exit code is not 0: 5 if --timeout came before all had, 4 if nobody is there or could
be reached.`,
		Example: `  fabric-node gather -k shop status
  fabric-node gather -k shop status -o ndjson | jq -r .from
  fabric-node gather -k shop --topic prices --replies 1 apples`,
		Args: exactly(0, 1, "[DATA or -]"),
		RunE: a.oneShot(func(ctx context.Context, args []string) error {
			if q.Count < 0 || q.Silence < 0 {
				return usagef("--replies %d, --silence %v: neither can be negative", q.Count, q.Silence)
			}
			if q.Topic != "" && q.Count == 0 {
				q.Silence = cmp.Or(q.Silence, defaultSilence)
			}
			data.count = 1
			if err := data.read(a.stdin, args); err != nil {
				return err
			}
			return a.observe(ctx, func(node *fabric.Node) error { return a.gather(ctx, node, q, data.text) })
		}),
	}
	fs := cmd.Flags()
	fs.StringVar(&q.Topic, "topic", "", "ask those who have joined topic `NAME`")
	fs.IntVar(&q.Count, "replies", 0, "end after `N` replies (default: everyone's)")
	fs.DurationVar(&q.Silence, "silence", 0, "end when nobody was heard for `DURATION` (default: 1s with --topic)")
	return cmd
}

// failureObject is a member that did not answer.
type failureObject struct {
	From  fabric.PID `json:"from"`
	Error string     `json:"error"`
}

func (a *app) gather(ctx context.Context, node *fabric.Node, q fabric.Query, data []byte) error {
	if q.Topic == "" {
		if _, err := a.view(ctx, node); err != nil { // whom it asks
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
	defer cancel()
	start, replies := time.Now(), 0
	var failed []error
	for m, err := range node.Gather(ctx, q, data) {
		u, one := errors.AsType[fabric.Undeliverable](err)
		switch {
		case err == nil:
			replies++
			err = a.reply(m, time.Since(start))
		case !one: // it is the last
			err = errors.Join(append(failed, err)...)
		default:
			failed = append(failed, fmt.Errorf("%s: %w", u.To, u.Err))
			err = a.failure(u)
		}
		if err != nil {
			return err
		}
	}
	err := errors.Join(failed...)
	switch {
	case replies > 0:
		return err
	case err == nil:
		err = errors.New("nobody answered")
	}
	return &exitError{exitNotFound, err, a.hint(fabric.ErrNoPeer)}
}

// failure says who did not answer, to programs: people read it at the end.
func (a *app) failure(u fabric.Undeliverable) error {
	if a.table() {
		return nil
	}
	return newEncoder(a.stdout).Encode(failureObject{u.To, a.redact(u.Err.Error())})
}

// reply prints one of several replies.
func (a *app) reply(m *fabric.Message, rtt time.Duration) error {
	p := newPayload(m.Data)
	if !a.table() {
		return newEncoder(a.stdout).Encode(replyObject{m.From, p, milliseconds(rtt)})
	}
	_, err := fmt.Fprintf(a.stdout, "%s\t%s\n", m.From, p.text())
	return err
}

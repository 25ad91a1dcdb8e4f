package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/fabric"
)

// swallows says what listening to a class changes for the others. It changes
// nothing for classes that are not here.
var swallows = map[string]string{
	"u": "a send to a process that is not there is not reported, and a request to it waits for its timeout",
	"q": "an anycast that nobody serves waits for its timeout",
	"g": "a query to a topic that nobody has joined ends by its silence or its timeout",
	"y": "a fabric that starts while nobody is connected takes one lease longer",
}

func newTap(a *app) *cobra.Command {
	classes := []string{"b", "g", "kv"}
	var print bool
	cmd := &cobra.Command{
		Use:   "tap",
		Short: "Show the traffic of a fabric",
		Long: `Print what is published in the fabric, message by message, until INT or TERM.
Frames of several messages are taken apart; what its receivers drop is marked.

The classes are u (to one process), b (broadcasts), g (topics), q (anycasts), r
(answers), y (the fabric's own signals) and kv (changes of the bucket). To the
server, who listens is a receiver: it does not tell a sender any more that nobody is
there. So with u, while tap runs, a send to a process that is gone goes unreported
and a request to it waits; with q, an anycast that nobody serves waits; with g, a
query to a topic that nobody has joined waits; with y, the first start of a fabric
waits one lease. b, r and kv change nothing. The contents of messages are shown only
with --print, and always as objects.`,
		Example: `  fabric-node tap -k shop --print
  fabric-node tap -k shop --class u,q,r   # for debugging: senders are not told of absent receivers
  fabric-node tap -k shop -o ndjson | jq 'select(.invalid)'`,
		Args: exactly(0, 0, ""),
		RunE: a.untilSignal(func(ctx context.Context, _ []string) error {
			for _, class := range slices.Compact(slices.Sorted(slices.Values(classes))) {
				if what, ok := swallows[class]; ok && class != "g" {
					a.note("while this listens to class %s, %s", class, what)
				}
			}
			return a.observe(ctx, func(node *fabric.Node) error {
				err := a.tap(ctx, node, classes, print)
				if ctx.Err() != nil {
					return nil
				}
				return err
			})
		}),
	}
	cmd.Flags().StringSliceVar(&classes, "class", classes, "listen to these `CLASSES` of u, b, g, q, r, y and kv")
	cmd.Flags().BoolVar(&print, "print", false, "show the contents of messages")
	return cmd
}

func (a *app) tap(ctx context.Context, node *fabric.Node, classes []string, print bool) error {
	if len(classes) == 0 {
		return usagef("--class: name at least one of u, b, g, q, r, y and kv")
	}
	out := a.events()
	for t, err := range node.Tap(ctx, classes...) {
		if errors.Is(err, fabric.ErrClosed) {
			return context.Cause(node.Context())
		}
		if err != nil {
			return err
		}
		if err := out.emit(newTrafficEvent(t, print)); err != nil {
			return err
		}
	}
	return nil
}

// trafficEvent is one message that tap has seen.
type trafficEvent struct {
	Type        string     `json:"type"`
	Class       string     `json:"class"`
	Kind        string     `json:"kind,omitempty"`
	From        fabric.PID `json:"from,omitempty"`
	To          fabric.PID `json:"to,omitempty"`
	Name        string     `json:"name,omitempty"`
	ID          uint64     `json:"id,omitempty"`
	MessageType string     `json:"message_type,omitempty"`
	Invalid     string     `json:"invalid,omitempty"`
	Missed      uint64     `json:"missed,omitempty"`
	payload

	print bool // data in the line for people too
}

func newTrafficEvent(t fabric.Traffic, print bool) trafficEvent {
	return trafficEvent{
		Type: "traffic", Class: t.Class, Kind: t.Kind, From: t.From, To: t.To, Name: t.Name, ID: t.ID,
		MessageType: t.Type, Invalid: t.Invalid, Missed: t.Missed, payload: newPayload(t.Data), print: print,
	}
}

func (e trafficEvent) line() (string, string) {
	details := e.Kind
	if e.From != "" {
		details += " from " + string(e.From)
	}
	if e.To != "" {
		details += " to " + string(e.To)
	}
	if e.Name != "" {
		details += " on " + e.Name
	}
	if e.ID > 0 {
		details += fmt.Sprintf(", #%d", e.ID)
	}
	details += fmt.Sprintf(", %d bytes", e.size)
	switch {
	case !e.print:
	case e.Data != nil:
		details += ": " + *e.Data
	default:
		details += ": " + *e.DataBase64 + " (base64)"
	}
	if e.Invalid != "" {
		details += " INVALID: " + e.Invalid
	}
	if e.Missed > 0 {
		details = fmt.Sprintf("(%d missed) ", e.Missed) + details
	}
	return e.Class, details
}

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/fabric"
)

func newPublish(a *app) *cobra.Command {
	var data input
	cmd := &cobra.Command{
		Use:   "publish TOPIC [DATA or -]",
		Short: "Send a message to those who have joined a topic",
		Long: `Send a message to all members that have joined the topic: run --topic does. Whether
anybody has is not known, and no error. Without DATA the message is empty; - reads it
from stdin.`,
		Example: `  fabric-node run -k shop --topic prices --print   # elsewhere
  fabric-node publish -k shop prices "apples 3"`,
		Args: exactly(1, 2, "TOPIC [DATA or -]"),
		RunE: a.oneShot(func(ctx context.Context, args []string) error {
			data.topic = args[0]
			return a.send(ctx, &data, args[1:], "")
		}),
	}
	data.bind(cmd.Flags())
	return cmd
}

func newAnycast(a *app) *cobra.Command {
	var data input
	cmd := &cobra.Command{
		Use:   "anycast SERVICE [DATA or -]",
		Short: "Ask one of those who serve a service, and print its reply",
		Long: `Send a request to one of the members that serve the service, whichever the server
picks, and write the reply's bytes to stdout, as request does. Exit code 4 says that
nobody serves it. run --serve does, for a test.`,
		Example: `  fabric-node run -k shop --serve echo   # elsewhere, several
  fabric-node anycast -k shop echo ping -o json | jq -r .from`,
		Args: exactly(1, 2, "SERVICE [DATA or -]"),
		RunE: a.oneShot(func(ctx context.Context, args []string) error {
			return a.ask(ctx, &data, args, func(ctx context.Context, node *fabric.Node, text []byte) (*fabric.Message, error) {
				return node.Anycast(ctx, args[0], text)
			}, "run --serve "+args[0])
		}),
	}
	data.bind(cmd.Flags())
	return cmd
}

// topic joins a topic until the member ends. Its messages come with the others.
func (m *member) topic(name string) {
	topic, err := m.node.JoinTopic(m.ctx, name)
	if err != nil {
		m.fail(err)
		return
	}
	m.work.Go(func() {
		<-m.ctx.Done()
		topic.Leave()
	})
}

// serve answers each request to a service with its own data, and reports it.
func (m *member) serve(name string, print bool) {
	m.work.Go(func() {
		m.fail(m.node.Serve(m.ctx, name, 1, func(_ context.Context, msg *fabric.Message) ([]byte, error) {
			ev := newMessageEvent(msg, print)
			ev.Service = name
			m.emit(ev)
			return msg.Data, nil
		}))
	})
}

// via says how a message came, if not to this member by its name.
func (e messageEvent) via() string {
	switch {
	case e.Topic != "":
		return fmt.Sprintf(" to topic %s", e.Topic)
	case e.Service != "":
		return fmt.Sprintf(" to service %s", e.Service)
	case e.Broadcast:
		return " to all"
	}
	return ""
}

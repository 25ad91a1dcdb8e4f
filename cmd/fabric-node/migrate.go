package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/natsfabric/natsfabric/embedded"
)

func newMigrate(a *app) *cobra.Command {
	var from string
	var replicas int
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move the streams of a server by itself to a running cluster",
		Long: `Copy all streams of the store of a server by itself to the cluster that --server
names. A member of a cluster that was started on such a store would delete them,
which is why it refuses to start.

Stop the server and the members of the fabric, start the cluster on empty stores, and
migrate. Messages keep their sequences, consumers their places. The old store stays
as it was, and is the backup. Nothing is copied if a stream of it cannot be read, or
belongs to another account than the default one: the error names it.`,
		Example: `  fabric-node server migrate --from /var/lib/fabric -s nats://a:4222,nats://b:4222 --timeout 2m`,
		Args:    exactly(0, 0, "--from DIR [--replicas N]"),
		RunE: a.oneShot(func(ctx context.Context, _ []string) error {
			if from == "" {
				return usagef("--from is missing: the store of the server by itself").see("fabric-node server migrate --help")
			}
			return a.migrate(ctx, from, replicas)
		}),
	}
	cmd.Flags().StringVar(&from, "from", "", "`directory` of the store to read")
	cmd.Flags().IntVar(&replicas, "replicas", 3, "copies of each stream in the cluster: `N` of 1, 3 or 5")
	return cmd
}

type migratedObject struct {
	Streams  []string `json:"streams"`
	Replicas int      `json:"replicas"`
}

func (a *app) migrate(ctx context.Context, from string, replicas int) error {
	ctx, cancel := context.WithTimeout(ctx, max(a.opts.timeout, startTimeout))
	defer cancel()
	ep, err := a.endpoint()
	if err != nil {
		return err
	}
	nc, err := a.dial(ep)
	if err != nil {
		return err
	}
	defer nc.Close()
	names, err := embedded.Migrate(ctx, from, nc, replicas)
	if err != nil {
		return err
	}
	if a.table() {
		_, err := fmt.Fprintf(a.stdout, "%d streams, %d copies of each: %s\n", len(names), replicas, strings.Join(names, ", "))
		return err
	}
	return a.object(migratedObject{append([]string{}, names...), replicas})
}

// dial connects to where the flags say, for a command that needs no fabric.
func (a *app) dial(ep endpoint, opts ...nats.Option) (*nats.Conn, error) {
	opts = append(append(ep.nats[:len(ep.nats):len(ep.nats)], nats.Name("fabric-node"), nats.Timeout(a.opts.timeout)), opts...)
	nc, err := nats.Connect(ep.url, opts...)
	if err != nil {
		return nil, &exitError{code: exitConnect, err: fmt.Errorf("cannot connect to %s: %w", redactServer(ep.url), err)}
	}
	return nc, nil
}

func newRemove(a *app) *cobra.Command {
	var credentials string
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a dead server off its cluster for good",
		Long: `Take the server NAME off its cluster. It must be down and stay down: a server under
a name that was removed must never come back. Start its successor under a new --name.
The cluster needs a majority for it.`,
		Example: `  fabric-node server remove c-6222 --credentials fabric.json -s nats://a:4222`,
		Args:    exactly(1, 1, "NAME --credentials FILE"),
		RunE: a.oneShot(func(ctx context.Context, args []string) error {
			if credentials == "" {
				return usagef("--credentials is missing: the file of the servers").see("fabric-node server remove --help")
			}
			ctx, cancel := context.WithTimeout(ctx, a.opts.timeout)
			defer cancel()
			system, err := embedded.SystemUser(credentials)
			if err != nil {
				return err
			}
			ep, err := a.endpoint()
			if err != nil {
				return err
			}
			nc, err := a.dial(ep, system)
			if err != nil {
				return err
			}
			defer nc.Close()
			if err := embedded.RemovePeer(ctx, nc, args[0]); err != nil {
				return err
			}
			if a.table() {
				_, err := fmt.Fprintf(a.stdout, "%s is no longer of the cluster; its name must not be used again\n", args[0])
				return err
			}
			return a.object(map[string]string{"removed": args[0]})
		}),
	}
	cmd.Flags().StringVar(&credentials, "credentials", "", "`file` of the servers' passwords")
	return cmd
}

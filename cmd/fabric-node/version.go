package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
)

type versionObject struct {
	Version    string `json:"version"`
	Revision   string `json:"revision,omitempty"`
	Go         string `json:"go"`
	NATSGo     string `json:"nats_go"`
	NATSServer string `json:"nats_server"`
}

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program and of what it is built with",
		Example: `  fabric-node version
  fabric-node version -o json | jq -r .nats_server`,
		Args: exactly(0, 0, ""),
		RunE: a.oneShot(func(context.Context, []string) error {
			v := versions()
			if !a.table() {
				return a.object(v)
			}
			ours := v.Version
			if v.Revision != "" {
				ours += " (" + v.Revision + ")"
			}
			_, err := fmt.Fprintf(a.stdout, "fabric-node  %s\ngo           %s\nnats.go      %s\nnats-server  %s\n",
				ours, v.Go, v.NATSGo, v.NATSServer)
			return err
		}),
	}
}

func versions() versionObject {
	v := versionObject{
		Version: "(devel)", Go: runtime.Version(), NATSGo: nats.Version, NATSServer: server.VERSION,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Revision = s.Value[:min(12, len(s.Value))]
		}
	}
	return v
}

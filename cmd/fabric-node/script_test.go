package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts run this test binary as fabric-node.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"fabric-node": main})
}

// cleanEnv keeps the settings of whoever runs the tests out of them.
func cleanEnv(t testing.TB) {
	for _, tw := range twins {
		t.Setenv(tw.env, "")
	}
	for _, name := range []string{
		"NATS_URL", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN", "NATS_CREDS", "NATS_NKEY", "NATS_JWT",
		"NATS_SEED", "NATS_CERT", "NATS_KEY", "NATS_CA", "NATS_SOCKS_PROXY",
	} {
		t.Setenv(name, "")
	}
}

// TestScript runs what needs no server.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Cmds:                scriptCommands,
		Setup:               scriptSetup,
	})
}

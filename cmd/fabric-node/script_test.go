//go:build unix

package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// The scripts run this test binary as fabric-node.
func TestMain(m *testing.M) {
	natstest.Patient()
	testscript.Main(m, map[string]func(){"fabric-node": main})
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

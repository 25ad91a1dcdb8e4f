//go:build unix

package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestE2E runs real processes: servers, members, commands under a leadership, and
// kill -9.
func TestE2E(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/e2e",
		RequireExplicitExec: true,
		Cmds:                scriptCommands,
		Setup:               scriptSetup,
	})
}

package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// The scripts run this test binary as fabric-node.
func TestMain(m *testing.M) {
	natstest.Patient()
	testscript.Main(clean{m}, map[string]func(){"fabric-node": main})
}

// clean keeps the settings of whoever runs the tests out of them.
type clean struct{ *testing.M }

func (c clean) Run() int {
	for _, tw := range twins {
		os.Unsetenv(tw.env)
	}
	for _, name := range []string{
		"NATS_URL", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN", "NATS_CREDS", "NATS_NKEY", "NATS_JWT",
		"NATS_SEED", "NATS_CERT", "NATS_KEY", "NATS_CA", "NATS_SOCKS_PROXY",
	} {
		os.Unsetenv(name)
	}
	return c.M.Run()
}

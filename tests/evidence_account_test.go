package tests

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// sharedEvents is what docs/BALANCE.md says of servers of one's own.
const sharedEvents = `
accounts {
  SYS:  { users: [{user: sys, password: x}],
          exports: [{stream: "$SYS.ACCOUNT.*.DISCONNECT", accounts: [SHOP]}] }
  SHOP: { jetstream: enabled, users: [{user: shop, password: x}],
          imports: [{stream: {account: SYS, subject: "$SYS.ACCOUNT.*.DISCONNECT"}}] }
}
system_account: SYS
`

// TestDisconnectsOfAnotherServer: both the system account's user, and the fabric's own
// when its account imports them, hear which connections end.
func TestDisconnectsOfAnotherServer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "accounts.conf")
	if err := os.WriteFile(path, []byte(sharedEvents), 0o600); err != nil {
		t.Fatal(err)
	}
	s := natstest.Start(t, func(o *server.Options) {
		if err := o.ProcessConfigFile(path); err != nil {
			t.Fatal(err)
		}
	})
	const lease = 10 * time.Second
	own := func(c *fabric.Config) { c.Lease, c.NATS = lease, []nats.Option{nats.UserInfo("shop", "x")} }
	for _, user := range []string{"sys", "shop"} {
		t.Run(user, func(t *testing.T) {
			system, err := nats.Connect(s.URL(), nats.UserInfo(user, "x"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(system.Close)
			env := func(c *fabric.Config) { c.Env = user }
			a := join(t, s.URL(), "a", own, env, func(c *fabric.Config) { c.System = system })
			// The node's connection is somebody else's to close: as a crash does.
			nc, err := nats.Connect(s.URL(), nats.UserInfo("shop", "x"), nats.Name("natsfabric t/"+user+" v"), nats.ReconnectBufSize(-1))
			if err != nil {
				t.Fatal(err)
			}
			v := join(t, "", "v", env, func(c *fabric.Config) { c.Lease, c.Conn = lease, nc })
			for c, err := range a.Changes(within(t, patience)) {
				switch {
				case err != nil:
					t.Fatal(err)
				case c.Kind == fabric.Joined && c.Member.PID == "v":
					nc.Close()
				case c.Kind == fabric.Failed && c.Reason == fabric.ConnClosed:
					<-v.Context().Done()
					return
				case c.Kind == fabric.Failed:
					t.Fatalf("%s failed by %q, want %q", c.Member.PID, c.Reason, fabric.ConnClosed)
				}
			}
		})
	}
}

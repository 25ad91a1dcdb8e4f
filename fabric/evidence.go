package fabric

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/roster"
)

// disconnects are the server's announcements that a client's connection has ended, of
// all accounts, in the system account.
const disconnects = "$SYS.ACCOUNT.*.DISCONNECT"

// presence ends the address in class r at which a coordinator asks the server whether
// anybody is there. Nobody answers.
const presence = "presence"

// connNamePrefix begins the names of the connections of a fabric's processes: the PID
// completes it.
func connNamePrefix(cluster, env string) string { return "natsfabric " + cluster + "/" + env + " " }

// unheard is told that the server knew nobody to take a message to pid.
func (n *Node) unheard(pid PID) {
	if inc := n.lifeOf(pid); inc != 0 && !n.cfg.Passive {
		n.evidence.Report(string(pid), inc, roster.Unheard)
	}
}

// present asks the server whether anybody takes what is sent to pid: every process
// does in class r, whatever its inbox. The server's 503 comes before the answer to a
// flush.
func (n *Node) present(ctx context.Context, pid string) (bool, error) {
	nc := n.link.nc
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return false, fmt.Errorf("ask for %s: %w", pid, natsError(err))
	}
	defer sub.Unsubscribe() // fails on a closed connection only
	if err := nc.PublishRequest(n.subjects.reply(PID(pid), n.cfg.PID)+presence, inbox, nil); err != nil {
		return false, fmt.Errorf("ask for %s: %w", pid, natsError(err))
	}
	if err := nc.FlushWithContext(ctx); err != nil {
		return false, fmt.Errorf("ask for %s: %w", pid, natsError(err))
	}
	_, err = sub.NextMsg(time.Nanosecond)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return false, nil
	case errors.Is(err, nats.ErrTimeout):
		return true, n.link.denies(n.subjects.reply(PID(pid), n.cfg.PID) + presence)
	case err == nil:
		return true, nil // somebody answers what nobody should
	}
	return false, fmt.Errorf("ask for %s: %w", pid, natsError(err))
}

// A disconnect is what is used of the server's announcement.
type disconnect struct {
	Client struct {
		Name string `json:"name"`
	} `json:"client"`
	Reason string `json:"reason"`
}

// sign returns what the reason that a server gives for the end of a connection says of
// the process at its other end.
func (d disconnect) sign() roster.Sign {
	switch d.Reason {
	case "Client Closed", "Read Error", "Write Error":
		return roster.Closed
	}
	return roster.Dropped
}

// watchSystem reports the members whose connections Config.System says have ended.
func (n *Node) watchSystem() error {
	if n.cfg.System == nil {
		return nil
	}
	prefix := connNamePrefix(n.cfg.Cluster, n.cfg.Env)
	sub, err := n.cfg.System.Subscribe(disconnects, func(m *nats.Msg) {
		var d disconnect
		if json.Unmarshal(m.Data, &d) != nil {
			return
		}
		pid, ours := strings.CutPrefix(d.Client.Name, prefix)
		if inc := n.lifeOf(PID(pid)); ours && inc != 0 {
			n.evidence.Report(pid, inc, d.sign())
		}
	})
	if err != nil {
		return fmt.Errorf("system connection: %w", natsError(err))
	}
	n.system = sub
	return nil
}

package embedded

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// SystemUser returns the option that connects as the user "system" of the servers
// with the Credentials at path. Inside the process of a server no password is needed:
// srv.Connect(nats.UserInfo("system", "")).
func SystemUser(path string) (nats.Option, error) {
	c, err := readCredentials(path)
	if err != nil {
		return nil, fmt.Errorf("%w: credentials: %w", ErrConfig, err)
	}
	return nats.UserInfo(systemUser, c.System), nil
}

// removeAttempt bounds the wait for one answer to RemovePeer: while the servers elect who
// leads them, nobody answers.
const removeAttempt = 2 * time.Second

// RemovePeer takes the member called name off the cluster for good, over a connection
// of the system user: what it kept gets a copy on another, if there is one to spare.
// The member must be down and stay down: a server under a name that was removed must
// never come back, and a new one needs a new name. It needs a majority, and waits for one,
// and for what it elects, until ctx ends. A name that no member has is an error.
//
//	system, err := embedded.SystemUser("credentials.json")
//	...
//	nc, err := nats.Connect("nats://a:4222", system)
//	...
//	err = embedded.RemovePeer(ctx, nc, "c")
func RemovePeer(ctx context.Context, nc *nats.Conn, name string) error {
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for asked := false; ; {
		err := removePeer(ctx, nc, name)
		if err == nil {
			return nil
		}
		api, _ := errors.AsType[*jetstream.APIError](err)
		switch {
		case api == nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			asked = true // nobody leads them yet, or the answer was lost
		case api != nil && api.ErrorCode == jetstream.ErrorCode(server.JSClusterServerMemberChangeInflightErr):
		case api != nil && api.ErrorCode == jetstream.ErrorCode(server.JSClusterServerNotMemberErr) && asked:
			return nil
		default:
			return fmt.Errorf("embedded: remove %s: %w", name, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("embedded: remove %s: %w: %w", name, context.Cause(ctx), err)
		}
	}
}

func removePeer(ctx context.Context, nc *nats.Conn, name string) error {
	ctx, cancel := context.WithTimeout(ctx, removeAttempt)
	defer cancel()
	var answer struct {
		Success bool `json:"success"`
	}
	err := ask(ctx, nc, server.JSApiRemoveServer, map[string]string{"peer": name}, &answer)
	if err == nil && !answer.Success {
		err = errors.New("the cluster did not say that it did")
	}
	return err
}

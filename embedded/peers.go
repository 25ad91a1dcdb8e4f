package embedded

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
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

// RemovePeer takes the member called name off the cluster for good, over a connection
// of the system user: what it kept gets a copy on another, if there is one to spare.
// The member must be down and stay down: a server under a name that was removed must
// never come back, and a new one needs a new name. It needs a majority.
func RemovePeer(ctx context.Context, nc *nats.Conn, name string) error {
	var answer struct {
		Success bool `json:"success"`
	}
	err := ask(ctx, nc, server.JSApiRemoveServer, map[string]string{"peer": name}, &answer)
	if err == nil && !answer.Success {
		err = errors.New("the cluster did not say that it did")
	}
	if err != nil {
		return fmt.Errorf("embedded: remove %s: %w", name, err)
	}
	return nil
}

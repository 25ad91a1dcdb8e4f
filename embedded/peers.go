package embedded

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// RemovePeer takes the member called name off the cluster for good: what it kept
// gets a replica on another, if there is one left. The member must be down and stay
// down: a server under a name that was removed must never come back, and a new one
// needs a new name. It needs a majority, and the Credentials of this package.
func (s *Server) RemovePeer(ctx context.Context, name string) error {
	if s.creds == nil || s.opts.Cluster.Port == 0 {
		return fmt.Errorf("%w: only a member of a cluster with Credentials can remove another", ErrConfig)
	}
	if name == s.opts.ServerName {
		return fmt.Errorf("%w: a member cannot remove itself: ask another", ErrConfig)
	}
	nc, err := s.Connect(nats.UserInfo(systemUser, ""), nats.NoReconnect())
	if err != nil {
		return err
	}
	defer nc.Close()
	return remove(ctx, nc, name)
}

// remove asks for it over a connection of the system account.
func remove(ctx context.Context, nc *nats.Conn, name string) error {
	req, err := json.Marshal(map[string]string{"peer": name})
	if err != nil {
		return err
	}
	msg, err := nc.RequestWithContext(ctx, server.JSApiRemoveServer, req)
	if err != nil {
		return fmt.Errorf("embedded: remove %s: %w", name, err)
	}
	var answer struct {
		Success bool `json:"success"`
		Error   *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return fmt.Errorf("embedded: remove %s: %w", name, err)
	}
	if answer.Error != nil {
		return fmt.Errorf("embedded: remove %s: %s", name, answer.Error.Description)
	}
	if !answer.Success {
		return fmt.Errorf("embedded: remove %s: the cluster did not say that it did", name)
	}
	return nil
}

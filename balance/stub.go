package balance

import (
	"context"

	"github.com/natsfabric/natsfabric/fabric"
)

// API in construction; member.go replaces this file.

// Join makes node a member of the group cfg.Group.
func Join(ctx context.Context, node *fabric.Node, cfg Config) (*Group, error) { panic("stub") }

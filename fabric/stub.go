package fabric

import (
	"context"
	"iter"
)

// API in construction; the real definitions replace this file.

type Node struct{ courier *courier }

func Join(ctx context.Context, cfg Config) (*Node, error)                 { panic("stub") }
func (n *Node) PID() PID                                                  { panic("stub") }
func (n *Node) Incarnation() uint64                                       { panic("stub") }
func (n *Node) Context() context.Context                                  { panic("stub") }
func (n *Node) View() View                                                { panic("stub") }
func (n *Node) Changes(ctx context.Context) iter.Seq2[Change, error]      { panic("stub") }
func (n *Node) Events(ctx context.Context) iter.Seq2[Event, error]        { panic("stub") }
func (n *Node) SetMeta(ctx context.Context, meta map[string]string) error { panic("stub") }
func (n *Node) Leave(ctx context.Context) error                           { panic("stub") }

package fabric

import (
	"context"
	"iter"
)

// API in construction; the real definitions replace this file.

type Node struct{}

type Stats struct {
	Sent, Received, Undeliverable, Rejected, Invalid uint64
}

func Join(ctx context.Context, cfg Config) (*Node, error)                 { panic("stub") }
func (n *Node) PID() PID                                                  { panic("stub") }
func (n *Node) Incarnation() uint64                                       { panic("stub") }
func (n *Node) Context() context.Context                                  { panic("stub") }
func (n *Node) View() View                                                { panic("stub") }
func (n *Node) Changes(ctx context.Context) iter.Seq2[Change, error]      { panic("stub") }
func (n *Node) Events(ctx context.Context) iter.Seq2[Event, error]        { panic("stub") }
func (n *Node) SetMeta(ctx context.Context, meta map[string]string) error { panic("stub") }
func (n *Node) Leave(ctx context.Context) error                           { panic("stub") }

// messages
func (n *Node) Send(ctx context.Context, to PID, data []byte) error                { panic("stub") }
func (n *Node) Broadcast(ctx context.Context, data []byte) error                   { panic("stub") }
func (n *Node) SendMsg(ctx context.Context, m *Message) error                      { panic("stub") }
func (n *Node) Flush(ctx context.Context) error                                    { panic("stub") }
func (n *Node) Request(ctx context.Context, to PID, data []byte) (*Message, error) { panic("stub") }
func (n *Node) Receive(ctx context.Context) (*Message, error)                      { panic("stub") }
func (n *Node) Messages(ctx context.Context) iter.Seq2[*Message, error]            { panic("stub") }
func (n *Node) Handle(ctx context.Context, workers int, f func(context.Context, *Message) ([]byte, error)) error {
	panic("stub")
}
func (n *Node) Stats() Stats                                    { panic("stub") }
func (m *Message) Reply(ctx context.Context, data []byte) error { panic("stub") }
func (m *Message) IsRequest() bool                              { panic("stub") }

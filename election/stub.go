package election

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

var (
	ErrLost     = errors.New("election: term lost")
	ErrResigned = errors.New("election: term resigned")
	ErrNoLeader = errors.New("election: no leader")
)

type Config struct {
	Name   string
	Grace  time.Duration // how long before the claim can be another's a Term's context ends; default 0, < Lease/2
	Logger *slog.Logger
}
type Election struct{}
type Term struct{}

// A Leader is the holder of an election; the zero Leader means vacant.
type Leader struct {
	PID         fabric.PID
	Incarnation uint64
	Term        uint64
	Token       uint64
	Since       time.Time
}

func New(node *fabric.Node, cfg Config) (*Election, error)      { panic("stub") }
func (e *Election) Campaign(ctx context.Context) (*Term, error) { panic("stub") }
func (e *Election) Lead(ctx context.Context, f func(context.Context, *Term) error) error {
	panic("stub")
}
func (e *Election) Leader(ctx context.Context) (Leader, error)           { panic("stub") } // ErrNoLeader
func (e *Election) Leaders(ctx context.Context) iter.Seq2[Leader, error] { panic("stub") }
func (t *Term) Context() context.Context                                 { panic("stub") }
func (t *Term) Number() uint64                                           { panic("stub") }
func (t *Term) Token() uint64                                            { panic("stub") }
func (t *Term) Resign(ctx context.Context) error                         { panic("stub") }

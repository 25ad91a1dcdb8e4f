package balance

import (
	"context"
	"iter"
	"log/slog"
	"time"

	"github.com/natsfabric/natsfabric/fabric"
)

type Config struct {
	Group    string // required for Join; letters, digits, _ and -
	Workers  int    // indices wanted; 0 means 1; negative is an error
	Passive  bool   // sees the total, takes no index, adds no worker
	Settle   time.Duration
	OnChange func(Share)
	Logger   *slog.Logger
}

// A Share is First..First+Workers-1 out of 0..Total-1; First is -1 without an index.
type Share struct {
	First, Workers, Total int
	Epoch                 uint64
}

type Group struct{}

// A Placed is one member of a group and the first index it has; -1 if passive.
type Placed struct {
	PID     fabric.PID
	First   int
	Workers int
	Self    bool
}

func Join(ctx context.Context, node *fabric.Node, cfg Config) (*Group, error) { panic("stub") }
func Static(ctx context.Context, first, workers, total int, cfg Config) (*Group, error) {
	panic("stub")
}
func (g *Group) Share() Share                                       { panic("stub") }
func (g *Group) Shares(ctx context.Context) iter.Seq2[Share, error] { panic("stub") }
func (g *Group) Members() []Placed                                  { panic("stub") }
func (g *Group) SetWorkers(ctx context.Context, n int) error        { panic("stub") }
func (g *Group) Context() context.Context                           { panic("stub") }
func (g *Group) Leave(ctx context.Context) error                    { panic("stub") }
func (s Share) Indices() iter.Seq[int]                              { panic("stub") }
func (s Share) Has(i int) bool                                      { panic("stub") }

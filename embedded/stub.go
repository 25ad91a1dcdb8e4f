package embedded

import (
	"context"
	"log/slog"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

type Config struct {
	Addr     string // HOST:PORT to listen on; default 127.0.0.1:-1 (a free port); "none" listens not at all (in-process only)
	StoreDir string
	Name     string
	Logger   *slog.Logger
	Options  func(*server.Options) // last word on what is not covered
}
type Server struct{}

func Start(ctx context.Context, cfg Config) (*Server, error)      { panic("stub") }
func (s *Server) ClientURL() string                               { panic("stub") }
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) { panic("stub") }
func (s *Server) Shutdown(ctx context.Context) error              { panic("stub") }

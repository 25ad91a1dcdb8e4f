package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// readyPoll is how often a starting server is asked whether it is ready.
const readyPoll = 20 * time.Millisecond

// Server is a NATS server in this process, from [Start] to [Server.Shutdown]. It is
// safe for concurrent use.
type Server struct {
	srv   *server.Server
	store *store
	log   *logger
	url   string

	started chan struct{} // closed when the server has done what starting takes
	stop    sync.Once
	down    chan struct{} // closed when the server is down and err is set
	err     error
}

var _ nats.InProcessConnProvider = (*Server)(nil)

// Start starts a server and returns when it accepts connections. The caller owns it
// and calls [Server.Shutdown] when done. The context bounds Start alone; if it ends
// first, a server that is still reading its store is stopped in the background, and
// its directory stays locked for as long.
//
// The error wraps one of this package's.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, context.Cause(ctx))
	}
	opts, err := cfg.options(ctx)
	if err != nil {
		return nil, err
	}
	st, err := openStore(opts.StoreDir)
	if err != nil {
		return nil, err
	}
	opts.StoreDir = st.dir
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrConfig, err), st.close())
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		srv:     srv,
		store:   st,
		log:     &logger{log: log, fatal: make(chan error, 1)},
		started: make(chan struct{}),
		down:    make(chan struct{}),
	}
	srv.SetLoggerV2(s.log, opts.Debug || log.Enabled(ctx, slog.LevelDebug), opts.Trace, opts.TraceVerbose)
	go func() { // waited for by Shutdown, through started
		defer close(s.started)
		srv.Start()
	}()
	if err := s.ready(ctx); err != nil {
		// If ctx has ended, this only sets the shutdown going.
		return nil, errors.Join(err, s.Shutdown(ctx))
	}
	s.log.up.Store(true)
	if !opts.DontListen {
		s.url = clientURL(srv, opts)
	}
	return s, nil
}

// ready waits until the server accepts connections or has failed.
func (s *Server) ready(ctx context.Context) error {
	select {
	case <-s.started:
	case <-ctx.Done():
	}
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		select {
		case err := <-s.log.fatal:
			return startError(err)
		default:
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrStart, context.Cause(ctx))
		}
		// The route listener is set up by a goroutine of the server.
		if s.srv.ReadyForConnections(time.Millisecond) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// startError gives what the server died of its category.
func startError(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: %w", ErrAddrInUse, err)
	}
	return fmt.Errorf("%w: %w", ErrStart, err)
}

// clientURL is where a client on this machine finds the server.
func clientURL(srv *server.Server, opts *server.Options) string {
	host := opts.Host
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = loopback
	}
	port := opts.Port
	if a, ok := srv.Addr().(*net.TCPAddr); ok {
		port = a.Port
	}
	scheme := "nats"
	if opts.TLSConfig != nil {
		scheme = "tls"
	}
	return scheme + "://" + net.JoinHostPort(host, strconv.Itoa(port))
}

// ClientURL returns the URL for clients on this machine, or "" if the server has no
// listener. It stays the same after Shutdown.
func (s *Server) ClientURL() string { return s.url }

// InProcessConn returns one end of a connection to the server that does not use the
// network, which makes the Server a provider for [nats.InProcessServer]. The error
// wraps [ErrClosed] once Shutdown has been called.
func (s *Server) InProcessConn() (net.Conn, error) {
	c, err := s.srv.InProcessConn()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return &conn{Conn: c}, nil
}

// Connect returns a client connection inside the process. The caller closes it. If
// the server asks for authentication, opts must answer.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	nc, err := nats.Connect(s.url, append(slices.Clone(opts), nats.InProcessServer(s))...)
	if err != nil {
		return nil, fmt.Errorf("embedded: connect: %w", err)
	}
	return nc, nil
}

// Shutdown stops the server and returns when it is down: connections and listeners
// closed, data on disk, the store directory released or, if temporary, removed. If
// the context ends first, Shutdown returns its error while the server goes on
// stopping; calling again waits again. Calling it any number of times is harmless.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop.Do(func() {
		go func() { // waited for by every Shutdown, through down
			defer close(s.down)
			<-s.started
			s.srv.Shutdown()
			s.srv.WaitForShutdown()
			s.err = s.store.close()
		}()
	})
	select {
	case <-s.down:
		return s.err
	default:
	}
	select {
	case <-s.down:
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("embedded: shutdown: %w", context.Cause(ctx))
	}
}

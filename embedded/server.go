package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
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

// lingering is for how long the address of a server that has ended may be in use: a
// process that this one starts at the time has its listeners as well, from fork to exec.
const lingering = 5 * time.Second

// Server is a NATS server in this process, from [Start] to [Server.Shutdown]. It is
// safe for concurrent use.
type Server struct {
	cfg   Config
	opts  *server.Options // of every run
	creds *credentials    // nil: it asks for nothing of ours
	store *store
	url   string

	stop sync.Once
	down chan struct{} // closed when the server is down and err is set
	err  error

	restart sync.Mutex // one Restart at a time

	mu     sync.Mutex // guards the fields below
	run    *run
	ending bool // Shutdown was called
}

// A run is the server between two restarts.
type run struct {
	srv     *server.Server
	log     *logger
	member  bool          // of a cluster
	started chan struct{} // closed when the server has done what starting takes
}

var _ nats.InProcessConnProvider = (*Server)(nil)

// Start starts a server and returns when it accepts connections. The caller owns it
// and calls [Server.Shutdown] when done. The context bounds Start alone; if it ends
// first, a server that is still reading its store is stopped in the background, and
// its directory stays locked for as long. A member of a cluster accepts connections
// before the cluster has formed: see [Server.AwaitCluster].
//
// The error wraps one of this package's.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStart, context.Cause(ctx))
	}
	opts, err := cfg.options()
	if err != nil {
		return nil, err
	}
	st, err := openStore(opts.StoreDir)
	if err != nil {
		return nil, err
	}
	s, err := start(ctx, cfg, opts, st)
	if err != nil && s == nil {
		return nil, errors.Join(err, st.close())
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// start starts a server on a store. If it returns a Server and an error, the store
// is being closed by that.
func start(ctx context.Context, cfg Config, opts *server.Options, st *store) (*Server, error) {
	s := &Server{cfg: cfg, opts: opts, store: st, down: make(chan struct{})}
	opts.StoreDir = st.dir
	if err := st.checkMode(opts.Cluster.Port != 0); err != nil {
		return nil, err
	}
	var err error
	if s.creds, err = cfg.protect(opts, st.dir); err != nil {
		return nil, err
	}
	if err := cfg.checkListeners(ctx, opts); err != nil {
		return nil, err
	}
	if s.run, err = s.begin(ctx); err != nil {
		return nil, err
	}
	if err := s.run.ready(ctx); err != nil {
		// If ctx has ended, this only sets the shutdown going.
		return s, errors.Join(err, s.Shutdown(ctx))
	}
	s.run.log.up.Store(true)
	if !opts.DontListen {
		s.keepPort()
		s.url = s.clientURL()
	}
	return s, nil
}

// begin makes a server and sets it going.
func (s *Server) begin(ctx context.Context) (*run, error) {
	srv, err := server.NewServer(s.opts.Clone())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if g, ok := s.opts.CustomClientAuthentication.(*guard); ok {
		g.system.Store(srv)
	}
	log := s.cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &run{
		srv:     srv,
		log:     &logger{log: log, fatal: make(chan error, 1)},
		member:  s.opts.Cluster.Port != 0,
		started: make(chan struct{}),
	}
	srv.SetLoggerV2(r.log, s.opts.Debug || log.Enabled(ctx, slog.LevelDebug), s.opts.Trace, s.opts.TraceVerbose)
	go func() { // waited for by end, through started
		defer close(r.started)
		srv.Start()
	}()
	return r, nil
}

// current returns the server that runs now, or ran last.
func (s *Server) current() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run
}

// keepPort has a restarted server listen where clients expect it.
func (s *Server) keepPort() {
	if a, ok := s.run.srv.Addr().(*net.TCPAddr); ok {
		s.opts.Port = a.Port
	}
}

// ready waits until the server accepts connections or has failed.
func (r *run) ready(ctx context.Context) error {
	select {
	case <-r.started:
	case <-ctx.Done():
	}
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		select {
		case err := <-r.log.fatal:
			return startError(err)
		default:
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrStart, context.Cause(ctx))
		}
		// The route listener is set up by a goroutine of the server.
		if r.srv.ReadyForConnections(time.Millisecond) {
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
func (s *Server) clientURL() string {
	host := s.opts.Host
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = loopback
	}
	u := url.URL{Scheme: "nats", User: s.creds.userInfo(), Host: net.JoinHostPort(host, strconv.Itoa(s.opts.Port))}
	if s.opts.TLSConfig != nil {
		u.Scheme = "tls"
	}
	return u.String()
}

// ClientURL returns the URL for clients on this machine, or "" if the server has no
// listener. It holds the password, if there is one of the Credentials: do not show
// it; [Server.Addr] is for that. It stays the same after Shutdown.
func (s *Server) ClientURL() string { return s.url }

// Addr returns HOST:PORT of ClientURL, or "".
func (s *Server) Addr() string {
	u, err := url.Parse(s.url)
	if err != nil {
		return ""
	}
	return u.Host
}

// Domain is the JetStream domain that clients of the server must name, or "".
func (s *Server) Domain() string {
	if len(s.cfg.Hub) == 0 {
		return "" // clients may leave it out
	}
	return s.cfg.domain()
}

// InProcessConn returns one end of a connection to the server that does not use the
// network, which makes the Server a provider for [nats.InProcessServer]. The error
// wraps [ErrClosed] once Shutdown has been called, and while the server restarts.
func (s *Server) InProcessConn() (net.Conn, error) {
	c, err := s.current().srv.InProcessConn()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return &conn{Conn: c}, nil
}

// Connect returns a client connection inside the process. The caller closes it. If
// Options set up authentication, opts must answer.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	nc, err := nats.Connect(s.Addr(), append(slices.Clone(opts), nats.InProcessServer(s))...)
	if err != nil {
		return nil, fmt.Errorf("embedded: connect: %w", err)
	}
	return nc, nil
}

// Restart stops the server as Shutdown does, and starts it again on the same store
// and the same address. Clients find it again by themselves, those inside the
// process as well. If it does not start, the error says why, and the Server is shut
// down.
func (s *Server) Restart(ctx context.Context) error {
	err := s.again(ctx)
	if err != nil && !errors.Is(err, ErrClosed) {
		return errors.Join(err, s.Shutdown(ctx))
	}
	return err
}

func (s *Server) again(ctx context.Context) error {
	s.restart.Lock()
	defer s.restart.Unlock()
	s.mu.Lock()
	ending, old := s.ending, s.run
	s.mu.Unlock()
	if ending {
		return ErrClosed
	}
	done := make(chan struct{})
	go func() { // goes on if ctx ends: Shutdown waits for the same server
		defer close(done)
		old.end()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("embedded: restart: %w", context.Cause(ctx))
	}
	for began := time.Now(); ; {
		r, err := s.begin(ctx)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.run = r
		s.mu.Unlock()
		err = r.ready(ctx)
		if err == nil {
			r.log.up.Store(true)
			return nil
		}
		if !errors.Is(err, ErrAddrInUse) || time.Since(began) > lingering {
			return err
		}
		r.srv.Shutdown()
		r.srv.WaitForShutdown()
	}
}

// end stops the server and returns when it is down. A member of a cluster first
// hands over what it leads, so that writes go on, and asks its clients to go.
func (r *run) end() {
	<-r.started
	if r.member {
		r.srv.LameDuckShutdown()
	}
	r.srv.Shutdown()
	r.srv.WaitForShutdown()
}

// Shutdown stops the server and returns when it is down: connections and listeners
// closed, data on disk, the store directory released or, if temporary, removed. A
// member of a cluster hands over what it leads first, which takes one to three
// seconds, during which the cluster goes on. If the context ends first, Shutdown
// returns its error while the server goes on stopping; calling again waits again.
// Calling it any number of times is harmless.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop.Do(func() {
		s.mu.Lock()
		s.ending = true
		s.mu.Unlock()
		go func() { // waited for by every Shutdown, through down
			defer close(s.down)
			s.restart.Lock() // a Restart under way is the last
			defer s.restart.Unlock()
			s.current().end()
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

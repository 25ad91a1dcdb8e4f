package natstest

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// readyTimeout bounds how long a server may take to accept connections.
const readyTimeout = 10 * time.Second

// dialTimeout is what a client in real time waits for a server to greet it: on a busy
// machine the two seconds of nats.go may be too short.
const dialTimeout = 20 * time.Second

var errDown = errors.New("natstest: server is down")

// Server is a NATS server with JetStream on files, for one test. It is stopped at
// the end of the test, after the test's own cleanups.
type Server struct {
	t    testing.TB
	opts *server.Options // what every incarnation is started with, but for the port
	log  *log

	mu    sync.Mutex     // guards the fields below; never held while blocking
	port  int            // as in opts at first, then the one that was bound
	srv   *server.Server // nil while down
	conns []*nats.Conn
	links []*Link
}

// Start starts a server on a free port of the loopback interface, in real time. Each
// tune has a say in the server's options before it starts.
func Start(t testing.TB, tune ...func(*server.Options)) *Server {
	t.Helper()
	opts := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, StoreDir: t.TempDir()}
	for _, f := range tune {
		f(opts)
	}
	return newServer(t, opts)
}

func newServer(t testing.TB, opts *server.Options) *Server {
	t.Helper()
	opts.JetStream = true
	opts.NoSigs = true
	if opts.JetStreamMaxStore == 0 {
		opts.JetStreamMaxStore = 1 << 30
	}
	if opts.JetStreamMaxMemory == 0 {
		opts.JetStreamMaxMemory = 256 << 20
	}
	s := &Server{t: t, opts: opts, port: opts.Port, log: &log{}}
	t.Cleanup(s.close)
	s.start()
	return s
}

// URL returns the address for clients, or "" in a bubble.
func (s *Server) URL() string {
	if s.opts.DontListen {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("nats://%s:%d", s.opts.Host, s.port)
}

// StoreDir is where the server keeps its data, for tests that spoil it while the
// server is down.
func (s *Server) StoreDir() string { return s.opts.StoreDir }

// Connect returns a connection that is closed when the test ends. It runs over TCP
// if the server listens, else in process. A provider in opts, such as a [Link],
// takes precedence. Asynchronous errors of the client go to the server's log.
func (s *Server) Connect(opts ...nats.Option) *nats.Conn {
	s.t.Helper()
	defaults := []nats.Option{nats.ErrorHandler(s.log.asyncError)}
	if s.opts.DontListen {
		defaults = append(defaults, nats.InProcessServer(s.Provider()))
	} else {
		defaults = append(defaults, nats.Timeout(dialTimeout))
	}
	nc, err := nats.Connect(s.URL(), append(defaults, opts...)...)
	if err != nil {
		s.t.Fatalf("natstest: connect: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, nc)
	return nc
}

// Provider returns an in-process way to the server, for [nats.InProcessServer]. It
// reaches the server that runs at the time, so clients find it after [Server.Restart].
func (s *Server) Provider() nats.InProcessConnProvider { return s.Link() }

// Link returns a new in-process way to the server that can be cut.
func (s *Server) Link() *Link {
	l := newLink(s.dial)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = append(s.links, l)
	return l
}

// Logs returns what the server has logged so far, one line per entry, over all
// restarts.
func (s *Server) Logs() string { return s.log.String() }

// Restart stops the server in an orderly way and starts another on the same store
// and the same port. Clients are disconnected, notice that on their own time (in a
// bubble, at the latest when [synctest.Wait] returns) and reconnect.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.Start()
}

// Stop stops the server in an orderly way and returns when it is down. Until
// [Server.Start], connecting fails. Stopping twice is harmless.
func (s *Server) Stop() {
	s.mu.Lock()
	srv := s.srv
	s.srv = nil
	s.mu.Unlock()
	if srv != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
	}
}

// Start starts the server again after [Server.Stop].
func (s *Server) Start() {
	s.t.Helper()
	s.start()
}

func (s *Server) start() {
	s.t.Helper()
	opts := s.opts.Clone()
	s.mu.Lock()
	opts.Port = s.port // a restarted server is found where it was
	s.mu.Unlock()
	srv, err := startServer(opts, s.log)
	if err != nil {
		s.t.Fatalf("natstest: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.srv = srv
	if a, ok := srv.Addr().(*net.TCPAddr); ok {
		s.port = a.Port
	}
}

// dial returns a connection to the server that runs now.
func (s *Server) dial() (net.Conn, error) {
	s.mu.Lock()
	srv := s.srv
	s.mu.Unlock()
	if srv == nil {
		return nil, errDown
	}
	return srv.InProcessConn()
}

// close ends everything the server made. It runs as a cleanup of the test.
func (s *Server) close() {
	s.mu.Lock()
	conns, links := s.conns, s.links
	s.conns, s.links = nil, nil
	s.mu.Unlock()
	for _, nc := range conns {
		nc.Close()
	}
	for _, l := range links {
		l.close()
	}
	s.Stop()
	if s.t.Failed() {
		s.t.Logf("natstest: end of the server's log:\n%s", s.log.tail(40))
	}
}

// FastOptions makes a client notice a dead link within two to three seconds and
// reconnect every 100 ms without end, with no jitter.
func FastOptions() []nats.Option {
	return []nats.Option{
		nats.Timeout(2 * time.Second),
		nats.PingInterval(time.Second),
		nats.MaxPingsOutstanding(2),
		nats.ReconnectWait(100 * time.Millisecond),
		nats.ReconnectJitter(0, 0),
		nats.MaxReconnects(-1),
	}
}

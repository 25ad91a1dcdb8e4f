package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	formationPoll = 50 * time.Millisecond
	// formationNote is how often a waiting server says for whom it waits.
	formationNote = 5 * time.Second
	dialLimit     = 500 * time.Millisecond
)

// AwaitCluster returns when the server has what it needs of others: a member of a
// cluster a leader of JetStream, a leaf node its hub, a server by itself nothing.
// The first formation needs all members; while it waits, it logs a warning with
// those that do not answer, and so does the error if ctx ends first, which wraps
// [ErrNotFormed].
func (s *Server) AwaitCluster(ctx context.Context) error {
	tick := time.NewTicker(formationPoll)
	defer tick.Stop()
	began := time.Now()
	noted := began
	for {
		srv := s.current().srv
		if s.formed(srv) {
			return nil
		}
		if !srv.Running() {
			return ErrClosed
		}
		if time.Since(noted) > formationNote {
			noted = time.Now()
			if s.cfg.Logger != nil {
				s.cfg.Logger.Warn("embedded: waiting for the cluster", slog.Duration("since", time.Since(began).Round(time.Second)),
					slog.String("for", s.awaited(ctx, srv)))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialLimit)
			defer cancel()
			return fmt.Errorf("%w: waiting for %s: %w", ErrNotFormed, s.awaited(ask, srv), context.Cause(ctx))
		}
	}
}

func (s *Server) formed(srv *server.Server) bool {
	switch {
	case len(s.cfg.Hub) > 0:
		return srv.NumLeafNodes() > 0
	case s.opts.Cluster.Port == 0:
		return true
	}
	info, err := srv.Jsz(&server.JSzOptions{})
	return err == nil && info.Meta != nil && info.Meta.Leader != ""
}

// awaited says for whom the server waits: the addresses that nobody answers, and
// otherwise what there is to say.
func (s *Server) awaited(ctx context.Context, srv *server.Server) string {
	addrs, what := s.cfg.Routes, "members"
	if len(s.cfg.Hub) > 0 {
		addrs, what = s.cfg.Hub, "a hub"
	}
	silent := silent(ctx, addrs)
	var here []string
	if routes, err := srv.Routez(nil); err == nil {
		for _, r := range routes.Routes {
			here = append(here, r.RemoteName)
		}
	}
	slices.Sort(here)
	here = slices.Compact(here)
	switch {
	case len(s.cfg.Hub) > 0 && len(silent) == len(addrs):
		return what + " at " + strings.Join(silent, ", ")
	case len(s.cfg.Hub) > 0:
		return "the hub to let this leaf node in"
	case len(silent) > 0:
		return fmt.Sprintf("%s at %s (here: %s)", what, strings.Join(silent, ", "), strings.Join(append(here, s.opts.ServerName), ", "))
	case len(here)+1 < len(addrs):
		return fmt.Sprintf("%d members that answer and have not joined: another cluster's name, credentials or TLS? (here: %s)",
			len(addrs)-1-len(here), strings.Join(append(here, s.opts.ServerName), ", "))
	}
	return "an election among the members, who are all here"
}

// silent returns those of addrs where nobody listens.
func silent(ctx context.Context, addrs []string) []string {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	found := make([]bool, len(addrs))
	var wg sync.WaitGroup
	for i, a := range addrs {
		wg.Go(func() {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", a)
			if err == nil {
				found[i] = c.Close() == nil
			}
		})
	}
	wg.Wait()
	var missing []string
	for i, a := range addrs {
		if !found[i] {
			missing = append(missing, a)
		}
	}
	return missing
}

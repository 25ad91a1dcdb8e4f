package fabric

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/token"
)

// Anycast sends data to one of the nodes that serve a service, whichever the server
// picks (this one, if it serves it), and waits for its answer, whose From says who
// it was. A service has a legal name (letters, digits, '_' and '-'). There is no
// order among anycasts, nor between them and other messages. Errors:
//
//   - [ErrNoReceiver]: nobody serves it at the moment. Within a round trip. On a
//     cluster this may be so for some milliseconds after somebody began to.
//   - [ErrInboxFull]: the one that got it did not take it: its queue was full, or it
//     was about to stop. It was not handled, and may be sent again.
//   - [*RemoteError]: the handler returned an error; its PID says whose.
//   - [*NameError], [ErrTooLarge], [ErrDisconnected], [ErrClosed]: nothing was sent.
//   - the cause of ctx's end, or [context.DeadlineExceeded] when a ctx without a
//     deadline has waited [DefaultRequestTimeout]: it may or may not have been handled.
//   - [*PermissionError]: the server does not let this node ask.
func (n *Node) Anycast(ctx context.Context, service string, data []byte) (*Message, error) {
	return n.courier.anycast(ctx, service, &Message{Data: data})
}

// AnycastMsg is [Node.Anycast] with what else a [Message] can have: an ID, a Type and
// headers of the caller's. It looks at no other field but Data.
func (n *Node) AnycastMsg(ctx context.Context, service string, m *Message) (*Message, error) {
	return n.courier.anycast(ctx, service, m)
}

// Serve answers the requests that [Node.Anycast] sends to a service: it calls f with
// each that the server gives to this node, in at most workers goroutines at once, its
// own among them; less than 1 means 1. Each request goes to one of all the nodes, and
// calls of Serve, that serve the service. f's result answers it as in [Node.Handle],
// and so f gets, with To this node, what a plain NATS client published to the service.
//
// What waits for a worker is bounded as by Config.Inbox, for each call of Serve. What
// does not fit is refused, and who asked is told.
//
// Serve returns when ctx has ended, with its cause, or when the node has closed, with
// [ErrClosed], after the last f returned; the context of f ends then, too. When ctx
// ends, Serve first has the server give it no more, and refuses what it has been
// given and no worker has begun: nobody is left waiting. To close the node without a
// request lost, end Serve before [Node.Leave]. Before it serves, it returns the errors
// of [Node.JoinTopic].
func (n *Node) Serve(ctx context.Context, service string, workers int, f func(context.Context, *Message) ([]byte, error)) error {
	return n.courier.serve(ctx, service, workers, f)
}

func (c *courier) anycast(ctx context.Context, service string, m *Message) (*Message, error) {
	d, err := c.serviceDest(ctx, service)
	if err != nil {
		return nil, fmt.Errorf("anycast to %s: %w", service, err)
	}
	a, id, err := c.exchange(ctx, d, m)
	if err != nil {
		return nil, fmt.Errorf("anycast to %s: %w", service, err)
	}
	return &Message{From: a.from, To: c.cfg.pid, ID: id, Type: a.typ, Data: a.data}, nil
}

func (c *courier) serviceDest(ctx context.Context, service string) (*dest, error) {
	if err := c.sendable(ctx); err != nil {
		return nil, err
	}
	return c.services.dests.get("service", service, func() *dest {
		d := c.newDest(Everyone)
		d.pid, d.subject, d.service = nobody, c.subj.service(service), service
		return d
	})
}

// services are those that this node serves, and those that it asks.
type services struct {
	dests namedDests

	mu      sync.Mutex // guards the fields below
	running []*service
	ended   Stats // what those that ended have counted
}

// A service is one call of Serve.
type service struct {
	name  string
	c     *courier
	inbox *inbox
	sub   *nats.Subscription
	ended chan struct{} // closed when take was called for the last time

	mu      sync.Mutex // guards stopped: nothing is put into inbox after it
	stopped bool

	statsMu sync.Mutex // guards stats
	stats   serviceStats
}

// serviceStats are what the handler of a service did.
type serviceStats struct {
	requests, errors int
	lastError        string
	busy             time.Duration
}

func (c *courier) serve(ctx context.Context, name string, workers int, f handler) error {
	err := token.Check("service", name)
	if err == nil {
		err = c.receiving(ctx)
	}
	if err != nil {
		return fmt.Errorf("serve %s: %w", name, err)
	}
	bounds := c.cfg.inbox
	bounds.OnFull = Reject // whoever asks is told
	s := &service{name: name, c: c, inbox: newInbox(bounds), ended: make(chan struct{})}
	d := decoder{c: c}
	s.sub, err = c.subscribeGroup(c.subj.serviceAll(name), c.subj.group(),
		func(m *nats.Msg) { s.take(d.decode(nil, m)) }, func() { close(s.ended) })
	if err != nil {
		return fmt.Errorf("serve %s: %w", name, err)
	}
	c.services.add(s)
	defer c.services.remove(s)
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() {
		<-ctx.Done() // while the last f runs, nobody shall wait in vain
		s.stop()
	})
	if err := c.subscribed(ctx, c.subj.serviceAll(name)); err != nil {
		return fmt.Errorf("serve %s: %w", name, err)
	}
	return c.handle(ctx, s.inbox, workers, s.counted(f))
}

// take puts what arrived into the queue, or refuses it. It waits for nobody.
func (s *service) take(batch []*Message) {
	s.mu.Lock()
	refused := batch
	if !s.stopped {
		refused = s.inbox.put(batch)
	}
	s.mu.Unlock()
	s.c.arrived(batch, refused)
}

// stopTimeout bounds how long the server may take to hear that nothing more is
// wanted.
const stopTimeout = 2 * time.Second

// stop ends the subscription, and refuses what waits and what still comes until the
// server has heard of it. It returns when that is so.
func (s *service) stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.c.arrived(nil, s.inbox.empty())
	s.drain()
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-s.ended:
	case <-timeout.C:
	}
	s.c.unsubscribe(s.sub)
}

// drain has the server send no more, and keeps what arrives until it has heard so.
func (s *service) drain() {
	// A connection that breaks would renew a subscription that is being drained when it
	// comes back, and never end it.
	if nc := s.c.nc; !nc.IsConnected() || s.sub.Drain() != nil || !nc.IsConnected() {
		s.c.unsubscribe(s.sub)
	}
}

// counted is f with what it does counted.
func (s *service) counted(f handler) handler {
	return func(ctx context.Context, m *Message) ([]byte, error) {
		began := time.Now()
		data, err := f(ctx, m)
		s.statsMu.Lock()
		defer s.statsMu.Unlock()
		s.stats.requests++
		s.stats.busy += time.Since(began)
		if err != nil {
			s.stats.errors++
			s.stats.lastError = err.Error()
		}
		return data, err
	}
}

func (s *services) add(sv *service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = append(s.running, sv)
}

func (s *services) remove(sv *service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, other := range s.running {
		if other == sv {
			s.running = append(s.running[:i:i], s.running[i+1:]...)
			sv.addStats(&s.ended)
		}
	}
}

// addStats adds what the queue of s has counted to sum.
func (s *service) addStats(sum *Stats) {
	var own Stats
	s.inbox.stats(&own)
	sum.Received += own.Received
	sum.Rejected += own.Rejected
	sum.Waiting += own.Waiting
}

// stats adds what the queues of all services ever have counted to sum.
func (s *services) stats(sum *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum.Received += s.ended.Received
	sum.Rejected += s.ended.Rejected
	for _, sv := range s.running {
		sv.addStats(sum)
	}
}

// unhandled returns how many requests wait for a worker, or have one.
func (s *services) unhandled() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sv := range s.running {
		n += sv.inbox.unhandled()
	}
	return n
}

// inboxes are the queues of those that run.
func (s *services) inboxes() (all []*inbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sv := range s.running {
		all = append(all, sv.inbox)
	}
	return all
}

// drain has the server send none of them any more.
func (s *services) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sv := range s.running {
		sv.drain()
	}
}

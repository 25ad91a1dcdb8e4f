package fabric

import (
	"context"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/token"
)

// A Topic is a name whose messages a node gets. See [Node.JoinTopic].
type Topic struct {
	name  string
	c     *courier
	leave sync.Once
}

// Name returns the topic's name.
func (t *Topic) Name() string { return t.name }

// JoinTopic has the node receive what others publish to a topic, with
// [Message].Topic set, until [Topic.Leave], which the caller must call when done. A
// topic has a legal name (letters, digits, '_' and '-') and needs no creation. What
// was published before is not to be had.
//
// The messages come where all others come, to the inbox of the node, and so obey
// its bounds; and what one node sent directly, broadcast and published arrives in
// the order in which it did so. That is why a topic has no queue of its own: between
// two queues there is no order.
//
// When JoinTopic returns, the node's server knows of it; the other servers of a
// cluster do some milliseconds later. A topic may be joined several times: a message
// still comes once, until the last has left. It stays joined over a reconnect, and
// misses what is published meanwhile.
//
// It returns a [NameError], [ErrPassive] if the node is passive, a [ConfigError] if
// [Inbox].Off is set, a [PermissionError] if the server does not allow it, or an
// error that wraps [ErrDisconnected] or [ErrClosed]; without the server's answer, that
// of ctx, which [DefaultRequestTimeout] bounds if it has no deadline.
func (n *Node) JoinTopic(ctx context.Context, name string) (*Topic, error) {
	return n.courier.joinTopic(ctx, name)
}

// Publish hands data to the connection for those who have joined a topic, but this
// node. Each gets it at most once, in the order described at [Node.Send], whose errors
// it returns. Whether anybody has joined is not known: it is no error if nobody has,
// and the Mode is Fast, whatever Config.Mode says. [Node.SendMsg] with Message.Topic
// does the same with headers, a Type or an ID. [Node.Gather] asks those who have.
func (n *Node) Publish(ctx context.Context, topic string, data []byte) error {
	if topic == "" {
		return fmt.Errorf("publish: %w", token.Check("topic", topic))
	}
	return n.courier.sendMsg(ctx, &Message{Topic: topic, Data: data})
}

// Leave ends what JoinTopic began. What had arrived can still be received. It may be
// called again, and when the node has closed; then it does nothing.
func (t *Topic) Leave() { t.leave.Do(func() { t.c.leaveTopic(t.name) }) }

// topics are the topics that this node has joined, and those that it publishes to.
type topics struct {
	mu     sync.Mutex // guards joined
	joined map[string]*joined
	dests  namedDests
}

// joined is a topic's subscription, as long as anybody in this node wants it.
type joined struct {
	sub   *nats.Subscription
	users int
}

func (c *courier) joinTopic(ctx context.Context, name string) (*Topic, error) {
	err := token.Check("topic", name)
	if err == nil {
		err = c.receiving(ctx)
	}
	if err == nil {
		err = c.useTopic(name)
	}
	if err != nil {
		return nil, fmt.Errorf("join topic %s: %w", name, err)
	}
	t := &Topic{name: name, c: c}
	if err := c.subscribed(ctx, c.subj.topicAll(name)); err != nil {
		t.Leave()
		return nil, fmt.Errorf("join topic %s: %w", name, err)
	}
	return t, nil
}

// receiving says why nothing can be subscribed to for the user, if so.
func (c *courier) receiving(ctx context.Context) error {
	switch {
	case c.cfg.passive:
		return ErrPassive
	case c.off:
		return &ConfigError{"Inbox.Off", "the node takes no messages"}
	}
	return c.sendable(ctx)
}

func (c *courier) useTopic(name string) error {
	c.topics.mu.Lock()
	defer c.topics.mu.Unlock()
	j := c.topics.joined[name]
	if j == nil {
		sub, err := c.subscribeChan(c.subj.topicAll(name))
		if err != nil {
			return err
		}
		if c.topics.joined == nil {
			c.topics.joined = make(map[string]*joined)
		}
		j = &joined{sub: sub}
		c.topics.joined[name] = j
	}
	j.users++
	return nil
}

func (c *courier) leaveTopic(name string) {
	c.topics.mu.Lock()
	defer c.topics.mu.Unlock()
	j := c.topics.joined[name]
	if j.users--; j.users == 0 {
		delete(c.topics.joined, name)
		c.unsubscribe(j.sub)
	}
}

// subscribed waits until the server has taken, or refused, a subscription to
// subject that was made before.
func (c *courier) subscribed(ctx context.Context, subject string) error {
	if !c.nc.IsConnected() {
		if c.nc.IsClosed() {
			return natsError(nats.ErrConnectionClosed)
		}
		return ErrDisconnected
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultRequestTimeout)
		defer cancel()
	}
	flush, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(life{c}, func() { cancel(ErrClosed) })()
	if err := c.nc.FlushWithContext(flush); err != nil {
		if flush.Err() != nil {
			return context.Cause(flush)
		}
		return natsError(err)
	}
	return c.cfg.refused(subject)
}

// topicDest returns the destination that a topic is.
func (c *courier) topicDest(name string) (*dest, error) {
	return c.topics.dests.get("topic", name, func() *dest {
		d := c.newDest(Everyone)
		d.subject = c.subj.topic(name)
		return d
	})
}

// namedDests caches destinations that are no PIDs. It is emptied when it has
// maxDests.
type namedDests struct {
	mu sync.RWMutex // guards m
	m  map[string]*dest
}

// get returns the destination of a name, which is for field, made if it is new.
func (s *namedDests) get(field, name string, build func() *dest) (*dest, error) {
	s.mu.RLock()
	d := s.m[name]
	s.mu.RUnlock()
	if d != nil {
		return d, nil
	}
	if err := token.Check(field, name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d = s.m[name]; d == nil {
		if s.m == nil || len(s.m) >= maxDests {
			s.m = make(map[string]*dest)
		}
		d = build()
		s.m[name] = d
	}
	return d, nil
}

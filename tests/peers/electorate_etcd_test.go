//go:build linux

package peers

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

// An etcdCandidate is a session and an Election of etcd's own client.
type etcdCandidate struct {
	client   *clientv3.Client
	session  *concurrency.Session
	election *concurrency.Election
	prefix   string
	id       string
}

func dialEtcd(ctx context.Context, url string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{url}, Context: ctx, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// awaitEtcd returns when a server answers.
func awaitEtcd(ctx context.Context, url string) error {
	client, err := dialEtcd(ctx, url)
	if err != nil {
		return err
	}
	defer client.Close()
	return until(ctx, func() (bool, error) {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := client.Get(short, "x")
		return err == nil, nil
	})
}

// standEtcd counts leases in whole seconds, as etcd does, rounded up.
func standEtcd(ctx context.Context, url, name, id string, ttl time.Duration) (candidate, error) {
	client, err := dialEtcd(context.WithoutCancel(ctx), url)
	if err != nil {
		return nil, err
	}
	session, err := concurrency.NewSession(client, concurrency.WithTTL(int((ttl+time.Second-1)/time.Second)))
	if err != nil {
		return nil, err
	}
	return newEtcdCandidate(client, session, name, id), nil
}

func newEtcdCandidate(client *clientv3.Client, session *concurrency.Session, name, id string) *etcdCandidate {
	prefix := "/election/" + name
	return &etcdCandidate{client: client, session: session, election: concurrency.NewElection(session, prefix), prefix: prefix, id: id}
}

func (c *etcdCandidate) campaign(ctx context.Context) error { return c.election.Campaign(ctx, c.id) }

// standing waits until there are two keys, the leader's and its own.
func (c *etcdCandidate) standing(ctx context.Context) error {
	err := until(ctx, func() (bool, error) {
		r, err := c.client.Get(ctx, c.prefix+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		return err == nil && r.Count == 2, err
	})
	if err != nil {
		return err
	}
	return settle(ctx)
}

func (c *etcdCandidate) resign(ctx context.Context) error { return c.election.Resign(ctx) }

func (c *etcdCandidate) leave(context.Context) error {
	defer c.client.Close()
	return c.session.Close()
}

package embedded

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// settleCopies makes copies that are alike. The one that was restored says that the
// stream is as old as it was, later ones that it is new: a fabric would take a change
// of leader for the loss of its bucket. So another leads, and the first is made anew.
func settleCopies(ctx context.Context, nc *nats.Conn, name string, replicas int) error {
	if err := scale(ctx, nc, name, replicas); err != nil {
		return err
	}
	first, err := currentLeader(ctx, nc, name, replicas)
	if err != nil {
		return err
	}
	for leader := first; leader == first; {
		if err := ask(ctx, nc, fmt.Sprintf(server.JSApiStreamLeaderStepDownT, name), nil, nil); err != nil {
			return fmt.Errorf("leader steps down: %w", err)
		}
		if leader, err = currentLeader(ctx, nc, name, replicas); err != nil {
			return err
		}
	}
	for _, n := range []int{1, replicas} {
		if err := scale(ctx, nc, name, n); err != nil {
			return err
		}
		if _, err := currentLeader(ctx, nc, name, n); err != nil {
			return err
		}
	}
	return nil
}

// scale changes how many copies there are to be.
func scale(ctx context.Context, nc *nats.Conn, name string, replicas int) error {
	var info struct {
		Config map[string]any `json:"config"`
	}
	if err := ask(ctx, nc, fmt.Sprintf(server.JSApiStreamInfoT, name), nil, &info); err != nil {
		return err
	}
	info.Config["num_replicas"] = replicas
	err := placed(ctx, func() error { return ask(ctx, nc, fmt.Sprintf(server.JSApiStreamUpdateT, name), info.Config, nil) })
	if err != nil {
		return fmt.Errorf("%d replicas: %w", replicas, err)
	}
	return nil
}

// copies are who keeps a stream, or the position of a consumer.
type copies struct {
	Leader   string `json:"leader"`
	Replicas []struct {
		Current bool `json:"current"`
	} `json:"replicas"`
}

// current returns how many have everything, the leader included.
func (c copies) current() int {
	current := 1
	for _, r := range c.Replicas {
		if r.Current {
			current++
		}
	}
	return current
}

func (c copies) complete(replicas int) bool {
	return c.Leader != "" && c.current() == replicas && len(c.Replicas) == replicas-1
}

// currentLeader waits until the stream has a leader and all its copies what it has, and
// those of its consumers as well: one that becomes the only copy before is a loss.
func currentLeader(ctx context.Context, nc *nats.Conn, name string, replicas int) (string, error) {
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		var info struct {
			Cluster copies `json:"cluster"`
		}
		try, cancel := context.WithTimeout(ctx, answerTimeout) // without a leader nobody answers
		err := ask(try, nc, fmt.Sprintf(server.JSApiStreamInfoT, name), nil, &info)
		complete := err == nil && info.Cluster.complete(replicas)
		if complete {
			complete, err = currentConsumers(try, nc, name, replicas)
		}
		cancel()
		if complete {
			return info.Cluster.Leader, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("%d of %d copies are current: %w", info.Cluster.current(), replicas, errors.Join(context.Cause(ctx), err))
		}
	}
}

// currentConsumers reports whether every consumer of a stream has a leader, and as many
// copies as the stream unless it is to have another number, all with what that has.
func currentConsumers(ctx context.Context, nc *nats.Conn, stream string, replicas int) (bool, error) {
	return eachConsumer(ctx, nc, stream, func(c consumer) bool {
		want := replicas
		if c.Config.Replicas > 0 {
			want = min(c.Config.Replicas, replicas)
		}
		return c.Cluster.complete(want)
	})
}

// A consumer is what is asked of one.
type consumer struct {
	Name   string `json:"name"`
	Config struct {
		Durable  string `json:"durable_name"`
		Replicas int    `json:"num_replicas"`
	} `json:"config"`
	AckFloor struct {
		Stream uint64 `json:"stream_seq"`
	} `json:"ack_floor"`
	Cluster copies `json:"cluster"`
}

// eachConsumer reports whether ok accepts every consumer of a stream, and all answer.
func eachConsumer(ctx context.Context, nc *nats.Conn, stream string, ok func(consumer) bool) (bool, error) {
	var list struct {
		Total     int        `json:"total"`
		Consumers []consumer `json:"consumers"`
	}
	for offset := 0; offset == 0 || offset < list.Total; offset += len(list.Consumers) {
		list.Consumers = nil
		if err := ask(ctx, nc, fmt.Sprintf(server.JSApiConsumerListT, stream), map[string]any{"offset": offset}, &list); err != nil {
			return false, err
		}
		if len(list.Consumers) == 0 {
			return list.Total == offset, nil // the rest does not answer
		}
		for _, c := range list.Consumers {
			if !ok(c) {
				return false, nil
			}
		}
	}
	return true, nil
}

// positions are up to where a stream's durable consumers have acknowledged everything.
func positions(ctx context.Context, nc *nats.Conn, stream string) (map[string]uint64, error) {
	all := map[string]uint64{}
	complete, err := eachConsumer(ctx, nc, stream, func(c consumer) bool {
		if c.Config.Durable != "" { // others may end at any time
			all[c.Name] = c.AckFloor.Stream
		}
		return true
	})
	if err == nil && !complete {
		err = errors.New("not all consumers answer")
	}
	return all, err
}

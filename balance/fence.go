package balance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/nats-io/nuid"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/lease"
	"github.com/natsfabric/natsfabric/internal/roster"
	"github.com/natsfabric/natsfabric/internal/token"
)

// A fence is the record of one index, or partition, of a strict group. Whoever is
// granted it writes the fence before acting on it, and the revision at which it did is
// the token of the grant: it grows from holder to holder, and a write under its guard
// is refused by the server once there is another holder.
type fence struct {
	Key   string `json:"key"`
	PID   string `json:"pid"`
	Inc   uint64 `json:"inc"`
	Stay  uint64 `json:"stay"`
	Token uint64 `json:"token"` // of the view that granted it, and
	Epoch uint64 `json:"epoch"` // its epoch: a grant of an older view gives way
	Nonce string `json:"nonce"`
}

// fenceKey names the fence of an index. With PerZone each zone has its own: no index has
// a '-', so that no two are the same.
func (c Config) fenceKey(index int) string {
	name := strconv.Itoa(index)
	if c.PerZone {
		name = c.Zone + "-" + name
	}
	return lease.KeyFence(c.Group, name)
}

func valueKey(group, key string) string { return lease.KeyValue(group, key) }

// errSuperseded: the fence is of a newer view than the grant.
var errSuperseded = errors.New("a newer view has granted it")

// raise writes the fence under key for id, granted by v, and returns its revision.
func raise(ctx context.Context, b *kv.Bucket, key string, id identity, v *roster.View) (uint64, error) {
	mine := fence{Key: key, PID: id.pid, Inc: id.inc, Stay: id.stay, Token: v.Token, Epoch: v.Epoch, Nonce: nuid.Next()}
	value, err := json.Marshal(mine)
	if err != nil {
		return 0, err
	}
	for n := 0; ; n++ {
		e, err := b.Get(ctx, key)
		if err == nil && e.Value != nil {
			var f fence
			switch jsonErr := json.Unmarshal(e.Value, &f); {
			case jsonErr != nil || f.Key != key:
				return 0, &lease.ForeignError{Key: key}
			case identity{f.PID, f.Inc, f.Stay} == id:
				return e.Rev, nil // nobody has had it since
			case f.Token > v.Token || f.Token == v.Token && f.Epoch >= v.Epoch:
				return 0, errSuperseded
			}
		}
		if err == nil {
			var rev uint64
			if rev, err = b.Settle(ctx, key, e.Rev, value, 0); err == nil {
				return rev, nil
			}
		}
		if errors.Is(err, kv.ErrReplaced) {
			return 0, err
		}
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return 0, fmt.Errorf("%w: %w", waitErr, err)
		}
	}
}

// raisers is how many fences are written at a time.
const raisers = 16

// raiseAll raises the fences of all of s, and returns the revisions of those that it
// could.
func raiseAll(ctx context.Context, b *kv.Bucket, key func(int) string, s slots, id identity, v *roster.View) map[int]uint64 {
	var mu sync.Mutex // guards revs
	revs := map[int]uint64{}
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(raisers, s.count()) {
		wg.Go(func() {
			for i := range next {
				if rev, err := raise(ctx, b, key(i), id, v); err == nil {
					mu.Lock()
					revs[i] = rev
					mu.Unlock()
				}
			}
		})
	}
	for i := range s.all() {
		next <- i
	}
	close(next)
	wg.Wait()
	return revs
}

// Token returns the fencing token of an index, or partition, that the member has in a
// strict mode: it is larger than that of every holder before. Hand it to whatever the
// work acts on, and have smaller ones refused there. [ErrNotHeld] if the member does
// not have the index; [ErrNotStrict].
func (g *Group) Token(index int) (uint64, error) {
	m, ok := g.src.(*member)
	if !ok || m.strict == nil {
		return 0, ErrNotStrict
	}
	return m.strict.token(index)
}

// Put stores value under key in the fabric's bucket, if the member has the index, or
// partition: the server refuses the write once the index has been granted to another
// member, however long the request was on its way and whatever this process believes.
// That is [ErrNotHeld]. Keys are names as PIDs are, and belong to the group; which
// index guards which key is for the caller to decide. An error that wraps neither
// ErrNotHeld nor [ErrNotStrict] leaves open whether value was, or will be, stored.
// Values are for checkpoints and the like, at most some 100 KiB.
func (g *Group) Put(ctx context.Context, index int, key string, value []byte) error {
	m, ok := g.src.(*member)
	if !ok || m.strict == nil {
		return ErrNotStrict
	}
	if err := token.Check("key", key); err != nil {
		return err
	}
	for n := 0; ; n++ {
		rev, err := m.strict.token(index)
		if err != nil {
			return err
		}
		_, err = m.host.Session.Bucket().Put(ctx, kv.Write{
			Key: valueKey(m.cfg.Group, key), Value: value, GuardKey: m.cfg.fenceKey(index), GuardRev: rev,
		})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, kv.ErrRefused):
			return fmt.Errorf("put %s: %w: %d was granted to another member", key, ErrNotHeld, index)
		case !errors.Is(err, kv.ErrBusy):
			return fmt.Errorf("balance: put %s: %w", key, err)
		}
		if waitErr := kv.Pause(ctx, n); waitErr != nil {
			return fmt.Errorf("balance: put %s: %w", key, waitErr)
		}
	}
}

// Get returns the value that was stored under key with Put by any member; nil if there
// is none. The read may be behind the newest write for moments.
func (g *Group) Get(ctx context.Context, key string) ([]byte, error) {
	m, ok := g.src.(*member)
	if !ok || m.strict == nil {
		return nil, ErrNotStrict
	}
	if err := token.Check("key", key); err != nil {
		return nil, err
	}
	e, err := m.host.Session.Bucket().Get(ctx, valueKey(m.cfg.Group, key))
	if err != nil {
		return nil, fmt.Errorf("balance: get %s: %w", key, err)
	}
	return e.Value, nil
}

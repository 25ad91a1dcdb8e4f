package kv_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

func TestOpenCreatesWhatItChecks(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		began := time.Now()
		b, nc, _ := opened(t, s)
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("the first Open took %v, want no wait", took)
		}
		if b.Longest() != ttl {
			t.Errorf("Longest() = %v, want %v", b.Longest(), ttl)
		}
		info := api(t, nc, "STREAM.INFO."+stream, nil)
		config := info["config"].(map[string]any)
		for field, want := range map[string]any{
			"storage": "file", "max_msgs_per_subject": 1.0, "deny_delete": true, "deny_purge": true,
			"allow_msg_ttl": true, "allow_direct": false, "discard": "new", "num_replicas": 1.0,
			"max_msg_size": float64(kv.MaxRecord), "allow_rollup_hdrs": false,
		} {
			if got := config[field]; got != want {
				t.Errorf("%s = %v, want %v", field, got, want)
			}
		}
		// Revisions begin at the time of the creation, in microseconds.
		first := uint64(info["state"].(map[string]any)["first_seq"].(float64))
		if low, high := uint64(began.UnixMicro()), uint64(time.Now().UnixMicro()); first < low || first > high+1 {
			t.Errorf("first revision %d, want %d to %d", first, low, high)
		}
	})
}

// Each is created in place of the bucket with one setting changed.
func TestOpenRefusesABucketSetUpDifferently(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		_, nc, _ := opened(t, s)
		good := api(t, nc, "STREAM.INFO."+stream, nil)["config"].(map[string]any)
		deleteBucket(t, nc)
		for _, c := range []struct {
			field  string
			change map[string]any
		}{
			{"storage", map[string]any{"storage": "memory"}},
			{"max_msgs_per_subject", map[string]any{"max_msgs_per_subject": 2}},
			{"max_age", map[string]any{"max_age": time.Hour}},
			{"max_msgs", map[string]any{"max_msgs": 100}},
			{"discard", map[string]any{"discard": "old"}},
			{"deny_delete", map[string]any{"deny_delete": false}},
			{"deny_purge", map[string]any{"deny_purge": false}},
			{"deny_purge", map[string]any{"deny_purge": false, "allow_rollup_hdrs": true}},
			{"allow_direct", map[string]any{"allow_direct": true}},
			{"allow_msg_ttl", map[string]any{"allow_msg_ttl": false}},
			{"deny_purge", map[string]any{"subject_delete_marker_ttl": time.Minute, "allow_rollup_hdrs": true, "deny_purge": false}},
			{"no_ack", map[string]any{"no_ack": true}},
			{"republish", map[string]any{"republish": nil}},
			{"republish", map[string]any{"republish": map[string]any{"src": "$KV.fab_test_production.>", "dest": "elsewhere.>"}}},
			{"republish", map[string]any{"republish": map[string]any{"src": "$KV.fab_test_production.>", "dest": feed + ".>", "headers_only": true}}},
			{"subjects", map[string]any{"subjects": []string{"other.>"}, "republish": map[string]any{"src": "other.>", "dest": feed + ".>"}}},
		} {
			config := map[string]any{}
			maps.Copy(config, good)
			maps.Copy(config, c.change)
			if resp := api(t, nc, "STREAM.CREATE."+stream, config); resp["error"] != nil {
				t.Errorf("create with %v: %v", c.change, resp["error"])
				continue
			}
			err := handle(t, nc).Open(within(t, 20*time.Second))
			e, ok := errors.AsType[*kv.ConfigError](err)
			if !ok || e.Field != c.field || e.Bucket != "fab_test_production" {
				t.Errorf("Open with %v = %v, want a *ConfigError about %s", c.change, err, c.field)
			}
			deleteBucket(t, nc)
		}
	})
}

func TestOpenNeverChangesABucket(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		_, nc, _ := opened(t, s)
		before, _ := json.Marshal(api(t, nc, "STREAM.INFO."+stream, nil)["config"])
		opened(t, s, func(c *kv.Config) { c.Replicas = 3 })
		after, _ := json.Marshal(api(t, nc, "STREAM.INFO."+stream, nil)["config"])
		if string(before) != string(after) {
			t.Errorf("a second Open changed\n%s\nto\n%s", before, after)
		}
	})
}

func TestOpenMoreReplicasThanServers(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc, _ := connect(t, s)
		began := time.Now()
		err := handle(t, nc, func(c *kv.Config) { c.Replicas = 3 }).Open(within(t, time.Minute))
		if err == nil || !strings.Contains(err.Error(), "3 replicas") || time.Since(began) > time.Second {
			t.Errorf("Open with 3 replicas on one server = %v after %v, want an error at once that names them", err, time.Since(began))
		}
	})
}

// plainAccount gives the server an account without JetStream.
func plainAccount(o *server.Options) {
	plain := server.NewAccount("PLAIN")
	o.Accounts = []*server.Account{plain}
	o.Users = []*server.User{{Username: "plain", Password: "plain", Account: plain}}
}

func TestOpenWithoutJetStream(t *testing.T) {
	s := natstest.Start(t, plainAccount)
	nc := s.Connect(nats.UserInfo("plain", "plain"))
	if err := handle(t, nc).Open(within(t, 10*time.Second)); !errors.Is(err, kv.ErrNoJetStream) {
		t.Errorf("Open = %v, want ErrNoJetStream", err)
	}
}

func TestOpenOnAnOldServer(t *testing.T) {
	s := natstest.Start(t, plainAccount)
	nc := s.Connect(nats.UserInfo("plain", "plain"))
	for _, answer := range []string{`{"type":"io.nats.jetstream.api.v1.account_info_response","api":{"total":1}}`, `{"api":{"level":0}}`} {
		sub, err := nc.Subscribe("$JS.old.API.INFO", func(m *nats.Msg) { m.Respond([]byte(answer)) })
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		b := handle(t, nc, func(c *kv.Config) { c.Domain = "old" }) // in $JS.API the server itself answers
		if err := b.Open(within(t, 10*time.Second)); !errors.Is(err, kv.ErrOldServer) {
			t.Errorf("Open where INFO answers %s = %v, want ErrOldServer", answer, err)
		}
		if err := sub.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenNamesAMissingPermission(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc, _ := connect(t, s)
		denied := func(subject string) error { return &kv.PermissionError{Op: "publish", Subject: subject} }
		b := handle(t, nc, func(c *kv.Config) { c.Denied = denied; c.Domain = "nowhere" })
		err := b.Open(within(t, 10*time.Second))
		e, ok := errors.AsType[*kv.PermissionError](err)
		if !ok || e.Subject != "$JS.nowhere.API.INFO" {
			t.Errorf("Open = %v, want a *PermissionError that names the subject", err)
		}
	})
}

func TestNewBucketStaysClosedForALease(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		began := time.Now()
		opened(t, s, func(c *kv.Config) { c.Alone = notAlone })
		if took := time.Since(began); took < ttl || took > ttl+time.Second {
			t.Errorf("opened %v after another node was found connected, want one lease of %v", took, ttl)
		}
		began = time.Now()
		opened(t, s, func(c *kv.Config) { c.Alone = notAlone })
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("a bucket that is open was joined after %v, want at once", took)
		}
	})
}

func TestClosedBucketIsOpenedByAnother(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc, _ := connect(t, s)
		err := handle(t, nc, func(c *kv.Config) { c.Alone = notAlone }).Open(within(t, time.Second))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Open = %v, want to wait until its context ends", err)
		}
		nc.Close() // the creator is gone
		began := time.Now()
		b, _, _ := opened(t, s) // it is alone, but did not make the bucket
		if took := time.Since(began); took < ttl || took > ttl+time.Second {
			t.Errorf("opened %v after it was first seen closed, want one lease of %v", took, ttl)
		}
		if b.Longest() != ttl {
			t.Errorf("Longest() = %v, want %v", b.Longest(), ttl)
		}
	})
}

// Whoever waits for a closed bucket tells the nodes that are connected: one of them
// may hold a lease longer than it knows of.
func TestEveryoneWhoWaitsAsksWhoIsThere(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc, _ := connect(t, s)
		handle(t, nc, func(c *kv.Config) { c.Alone = notAlone }).Open(within(t, time.Second)) // ends closed, as above
		asked := 0
		opened(t, s, func(c *kv.Config) {
			c.Alone = func(context.Context) (bool, error) { asked++; return true, nil }
		})
		if asked == 0 {
			t.Error("the second to come did not ask")
		}
	})
}

// A record that opened the bucket before does not open the one after it.
func TestOpenRecordOfALostBucketOpensNothing(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		record := get(t, a, "b")
		time.Sleep(time.Millisecond) // two creations at one instant look the same
		deleteBucket(t, nc)
		other, _ := connect(t, s)
		handle(t, other, func(c *kv.Config) { c.Alone = notAlone }).Open(within(t, time.Second)) // ends closed, as above
		put(t, a, "b", string(record.Value), 0)
		began := time.Now()
		if err := a.Open(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < ttl {
			t.Errorf("open after %v: a late record of the lost bucket opened the new one", took)
		}
	})
}

func TestLongerLeaseIsRefused(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		opened(t, s)
		nc, _ := connect(t, s)
		err := handle(t, nc, func(c *kv.Config) { c.Lease = ttl + time.Millisecond }).Open(within(t, 10*time.Second))
		if e, ok := errors.AsType[*kv.LeaseError](err); !ok || e.Longest != ttl || e.Lease != ttl+time.Millisecond {
			t.Errorf("Open with a longer lease = %v, want a *LeaseError", err)
		}
		b, _, _ := opened(t, s, func(c *kv.Config) { c.Lease = time.Second })
		if b.Longest() != ttl {
			t.Errorf("Longest() of a process with a shorter lease = %v, want %v", b.Longest(), ttl)
		}
	})
}

// longer is the lease of a fabric that a process with the lease ttl comes to.
const longer = 6 * ttl

// A bucket that was closed because it went back in time says for how long: a newcomer
// with a short lease waits as long, and shuts nobody out when it opens it.
func TestNewcomerKeepsTheLeaseOfAClosedRecord(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _, _ := opened(t, s, func(c *kv.Config) { c.Lease = longer })
		closed := fmt.Sprintf(`{"key":"b","created":"0001-01-01T00:00:00Z","lease_ms":%d}`, longer.Milliseconds())
		put(t, a, "b", closed, get(t, a, "b").Rev)
		began := time.Now()
		b, _, _ := opened(t, s)
		if took := time.Since(began); took < longer || took > longer+time.Second {
			t.Errorf("a newcomer opened the bucket after %v, want one longest lease of %v", took, longer)
		}
		if b.Longest() != longer {
			t.Errorf("Longest() of the newcomer = %v, want %v", b.Longest(), longer)
		}
		if err := a.Open(within(t, time.Minute)); err != nil {
			t.Errorf("Open of a member with a longer lease than the newcomer's = %v", err)
		}
	})
}

// Whoever makes a lost bucket anew may not know of a longer lease: a member says so.
func TestMemberStatesTheLongestLeaseInANewBucket(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s, func(c *kv.Config) { c.Lease = longer })
		deleteBucket(t, nc)
		made := make(chan error)
		other, _ := connect(t, s)
		b := handle(t, other, func(c *kv.Config) { c.Alone = notAlone })
		began := time.Now()
		go func() { made <- b.Open(within(t, time.Minute)) }()
		time.Sleep(ttl / 5)
		if err := a.Open(within(t, time.Minute)); err != nil {
			t.Errorf("Open of a member with a longer lease than the newcomer's = %v", err)
		}
		if err := <-made; err != nil {
			t.Errorf("Open of the newcomer = %v", err)
		}
		if took := time.Since(began); took < longer || took > longer+ttl {
			t.Errorf("open after %v, want one longest lease of %v", took, longer)
		}
		if b.Longest() != longer {
			t.Errorf("Longest() of the newcomer = %v, want %v", b.Longest(), longer)
		}
	})
}

// A member that is the only one, and makes the lost bucket anew, has nobody to tell.
func TestLoneMemberOpensANewBucketAtOnce(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		deleteBucket(t, nc)
		began := time.Now()
		if err := a.Open(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("opened after %v, want no wait", took)
		}
	})
}

func TestOpenWaitsForTheServer(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc, link := connect(t, s)
		link.Cut()
		time.AfterFunc(10*time.Second, link.Heal)
		began := time.Now()
		if err := handle(t, nc).Open(within(t, time.Minute)); err != nil {
			t.Errorf("Open = %v, want it to go on until the link is back", err)
		}
		if took := time.Since(began); took < 10*time.Second || took > 13*time.Second {
			t.Errorf("Open took %v over a link that was cut for 10 s", took)
		}
	})
}

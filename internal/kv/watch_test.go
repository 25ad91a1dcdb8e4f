package kv_test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/kv"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

// A mirror is what a reader of a watch knows.
type mirror struct {
	t      *testing.T
	w      *kv.Watch
	known  map[string]string
	synced bool
}

func watch(t *testing.T, b *kv.Bucket, pattern string) *mirror {
	t.Helper()
	w, err := b.Watch(t.Context(), pattern)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return &mirror{t: t, w: w, known: map[string]string{}}
}

func (m *mirror) take() {
	var entries []kv.Entry
	entries, m.synced = m.w.Take()
	for _, e := range entries {
		if e.Value == nil {
			delete(m.known, e.Key)
		} else {
			m.known[e.Key] = string(e.Value)
		}
	}
}

// await waits until the reader knows what is wanted, and returns how long it took.
func (m *mirror) await(limit time.Duration, want map[string]string) time.Duration {
	m.t.Helper()
	began := time.Now()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		m.take()
		if m.synced && maps.Equal(m.known, want) {
			return time.Since(began)
		}
		select {
		case <-m.w.Changed():
		case <-timeout.C:
			m.t.Errorf("after %v the watch knows %v, want %v", limit, m.known, want)
			return limit
		}
	}
}

// round is the longest time from one reading of everything to the next.
const round = kv.Reread * 6 / 5

func TestWatchIsTold(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _, _ := opened(t, s)
		one := put(t, a, "s.a", "1", 0)
		put(t, a, "c.a", "x", 0)
		b, _, _ := opened(t, s)
		all, exact := watch(t, b, "s.*"), watch(t, b, "s.b")
		all.await(time.Second, map[string]string{"s.a": "1"})
		exact.await(time.Second, map[string]string{})
		put(t, a, "s.a", "2", one)
		put(t, a, "s.b", "3", 0)
		if took := all.await(time.Second, map[string]string{"s.a": "2", "s.b": "3"}); took > 10*time.Millisecond {
			t.Errorf("told after %v, want at once", took)
		}
		exact.await(time.Second, map[string]string{"s.b": "3"})
	})
}

// A handle with another feed subject is one that misses every message.
func TestWatchRereadsWhatTheFeedMissed(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _, _ := opened(t, s)
		nc, _ := connect(t, s)
		for _, pattern := range []string{"s.*", "s.a"} {
			m := watch(t, handle(t, nc, func(c *kv.Config) { c.Feed = "nowhere" }), pattern)
			m.await(time.Second, map[string]string{})
			rev := put(t, a, "s.a", "1", 0)
			m.await(round, map[string]string{"s.a": "1"})
			if _, err := a.Put(t.Context(), kv.Write{Key: "s.a", Value: []byte("2"), GuardRev: rev, TTL: time.Second}); err != nil {
				t.Fatal(err)
			}
			m.await(2*round, map[string]string{}) // absence is believed when it is seen again
		}
	})
}

// TestWatchRereadsWhatChanged: the same for a watch that has read all for a while, of few
// keys, and of more than it reads one after the other.
func TestWatchRereadsWhatChanged(t *testing.T) {
	for _, others := range []int{0, 100} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			a, conn, _ := opened(t, s)
			want := map[string]string{"s.a": "1", "s.b": "1", "s.c": "1"}
			rev := put(t, a, "s.a", "1", 0)
			put(t, a, "s.b", "1", 0)
			if _, err := a.Put(t.Context(), kv.Write{Key: "s.c", Value: []byte("1"), TTL: 5 * round}); err != nil {
				t.Fatal(err)
			}
			revs := make([]uint64, others)
			renew := func(i int) {
				key := fmt.Sprint("s.other", i)
				revs[i] = put(t, a, key, "x", revs[i])
				want[key] = "x"
			}
			for i := range others {
				renew(i)
			}
			nc, _ := connect(t, s)
			m := watch(t, handle(t, nc, func(c *kv.Config) { c.Feed = "nowhere" }), "s.*")
			m.await(time.Second, want)
			time.Sleep(4 * round)
			for i := range others {
				renew(i)
			}
			put(t, a, "s.a", "2", rev)
			put(t, a, "s.d", "1", 0)
			msg := nats.NewMsg("$KV.fab_test_production.s.b")
			msg.Header.Set("KV-Operation", "DEL")
			if _, err := conn.RequestMsg(msg, time.Second); err != nil {
				t.Fatal(err)
			}
			want["s.a"], want["s.d"] = "2", "1"
			delete(want, "s.b")
			m.await(round, want)
			delete(want, "s.c") // its time is over
			m.await(3*round, want)
		})
	}
}

// TestWatchReadsLittle: a watch of many keys that do not change, and one of many of which
// the feed tells, do not read them all each time.
func TestWatchReadsLittle(t *testing.T) {
	const keys = 200
	for renewed, most := range map[bool]int64{
		false: 4 * keys, // all of them, each half a minute, and some
		true:  0,        // the feed tells of more than would be read one by one
	} {
		natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
			a, _, _ := opened(t, s)
			var revs [keys]uint64
			renew := func() {
				for i := range revs {
					revs[i] = put(t, a, fmt.Sprint("s.", i), "x", revs[i])
				}
			}
			renew()
			b, _, _ := opened(t, s)
			m := watch(t, b, "s.*")
			m.take()
			time.Sleep(4 * round)
			var reads atomic.Int64
			count, _ := connect(t, s)
			if _, err := count.Subscribe("$JS.API.STREAM.MSG.GET.>", func(*nats.Msg) { reads.Add(1) }); err != nil {
				t.Fatal(err)
			}
			if err := count.Flush(); err != nil {
				t.Fatal(err)
			}
			for range 60 {
				if renewed {
					renew()
				}
				time.Sleep(time.Second)
				m.take()
			}
			if n := reads.Load(); n > most {
				t.Errorf("renewed %t: %d records were read in a minute, want at most %d of %d", renewed, n, most, keys)
			}
		})
	}
}

func TestWatchRepairsWhatWasForged(t *testing.T) {
	for _, after := range []time.Duration{0, 4 * round} {
		repairsForged(t, after)
	}
}

func repairsForged(t *testing.T, after time.Duration) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		rev := put(t, a, "s.a", "true", 0)
		m := watch(t, a, "s.*")
		m.await(time.Second, map[string]string{"s.a": "true"})
		time.Sleep(after)
		for _, key := range []string{"s.a", "s.b"} {
			msg := nats.NewMsg(feed + "." + key)
			msg.Data = []byte("forged")
			msg.Header.Set("Nats-Sequence", strconv.FormatUint(1<<62, 10))
			if err := nc.PublishMsg(msg); err != nil {
				t.Fatal(err)
			}
		}
		m.await(time.Second, map[string]string{"s.a": "forged", "s.b": "forged"}) // it is a doorbell, not a record
		m.await(3*round, map[string]string{"s.a": "true"})
		put(t, a, "s.a", "newer", rev)
		if took := m.await(time.Second, map[string]string{"s.a": "newer"}); took > 10*time.Millisecond {
			t.Errorf("told after %v, want at once: the forged revision is forgotten", took)
		}
	})
}

func TestWatchIgnoresWhatIsOldOrNoChange(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		rev := put(t, a, "s.a", "true", 0)
		m := watch(t, a, "s.*")
		m.await(time.Second, map[string]string{"s.a": "true"})
		for _, sequence := range []string{"", "x", "-1", strconv.FormatUint(rev, 10), strconv.FormatUint(rev-1, 10)} {
			msg := nats.NewMsg(feed + ".s.a")
			msg.Data = []byte("old")
			msg.Header.Set("Nats-Sequence", sequence)
			if err := nc.PublishMsg(msg); err != nil {
				t.Fatal(err)
			}
		}
		// The server appends its own value to one that the writer put there.
		msg := nats.NewMsg("$KV.fab_test_production.s.b")
		msg.Data = []byte("b")
		msg.Header.Set("Nats-Sequence", strconv.FormatUint(1<<62, 10))
		if _, err := nc.RequestMsg(msg, time.Second); err != nil {
			t.Fatal(err)
		}
		m.await(time.Second, map[string]string{"s.a": "true", "s.b": "b"})
		put(t, a, "s.b", "c", get(t, a, "s.b").Rev)
		if took := m.await(time.Second, map[string]string{"s.a": "true", "s.b": "c"}); took > 10*time.Millisecond {
			t.Errorf("told after %v, want at once", took)
		}
	})
}

func TestWatchSeesKeysVanish(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		if _, err := a.Put(t.Context(), kv.Write{Key: "s.a", Value: []byte("1"), TTL: 10 * time.Second}); err != nil {
			t.Fatal(err)
		}
		put(t, a, "s.b", "2", 0)
		m := watch(t, a, "s.*")
		m.await(time.Second, map[string]string{"s.a": "1", "s.b": "2"})
		m.await(10*time.Second+2*round, map[string]string{"s.b": "2"}) // no marker says so: it is read
		msg := nats.NewMsg("$KV.fab_test_production.s.b")
		msg.Header.Set("KV-Operation", "DEL")
		if _, err := nc.RequestMsg(msg, time.Second); err != nil {
			t.Fatal(err)
		}
		m.await(time.Second, map[string]string{})
		put(t, a, "s.b", "3", get(t, a, "s.b").Rev)
		m.await(time.Second, map[string]string{"s.b": "3"})
	})
}

func TestWatchAfterAReconnect(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _, _ := opened(t, s)
		b, nc, link := opened(t, s)
		m := watch(t, b, "s.*")
		m.await(time.Second, map[string]string{})
		link.Cut()
		link.Kill()
		put(t, a, "s.a", "1", 0)
		time.Sleep(time.Minute)
		back := nc.StatusChanged(nats.CONNECTED)
		link.Heal()
		<-back
		b.Nudge()
		if took := m.await(round, map[string]string{"s.a": "1"}); took > 250*time.Millisecond {
			t.Errorf("known %v after the reconnect, want it read at once", took)
		}
	})
}

// tell is the feed's word that a key has a record.
func tell(t *testing.T, nc *nats.Conn, subject, value string, rev uint64) {
	t.Helper()
	msg := nats.NewMsg(subject)
	msg.Data = []byte(value)
	msg.Header.Set("Nats-Sequence", strconv.FormatUint(rev, 10))
	if err := nc.PublishMsg(msg); err != nil {
		t.Fatal(err)
	}
}

// A reading of everything that fails is not replaced by one of what has changed.
func TestWatchReadsAllAgainAfterAFailure(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		rev := put(t, a, "s.a", "true", 0)
		put(t, a, "s.b", "1", 0)
		var fails atomic.Bool // the next read of a record
		sub, err := nc.Subscribe("$JS.failing.API.>", func(m *nats.Msg) {
			go func() {
				if strings.Contains(m.Subject, "STREAM.MSG.GET") && fails.CompareAndSwap(true, false) {
					m.Respond([]byte(`{"error":{"code":503,"err_code":10008,"description":"temporarily unavailable"}}`))
					return
				}
				if answer, err := nc.Request("$JS."+strings.TrimPrefix(m.Subject, "$JS.failing."), m.Data, time.Second); err == nil {
					m.Respond(answer.Data)
				}
			}()
		})
		if err != nil {
			t.Fatal(err)
		}
		defer sub.Unsubscribe()
		b := handle(t, nc, func(c *kv.Config) { c.Domain = "failing" })
		m := watch(t, b, "s.*")
		m.await(time.Second, map[string]string{"s.a": "true", "s.b": "1"})
		time.Sleep(2 * round)
		tell(t, nc, feed+".s.a", "forged", rev+1) // no change of late: a full reading finds it out
		m.await(time.Second, map[string]string{"s.a": "forged", "s.b": "1"})
		time.Sleep(round)
		fails.Store(true)
		b.Nudge()
		m.await(2*time.Second, map[string]string{"s.a": "true", "s.b": "1"})
		if fails.Load() {
			t.Error("no read has failed")
		}
	})
}

// A deletion of which the feed does not tell is newer than what was just learned, and
// nothing from the past.
func TestWatchBelievesADeletionThatIsNewer(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, nc, _ := opened(t, s)
		b := handle(t, nc, func(c *kv.Config) { c.Feed = "told" })
		m := watch(t, b, "s.*")
		m.await(time.Second, map[string]string{})
		time.Sleep(2 * round)
		tell(t, nc, "told.s.a", "1", put(t, a, "s.a", "1", 0))
		m.await(time.Second, map[string]string{"s.a": "1"})
		msg := nats.NewMsg("$KV.fab_test_production.s.a")
		msg.Header.Set("KV-Operation", "DEL")
		if _, err := nc.RequestMsg(msg, time.Second); err != nil {
			t.Fatal(err)
		}
		for range 2 { // both readings come soon after the record was learned
			b.Nudge()
			time.Sleep(kv.Reread * 9 / 10)
		}
		m.await(round, map[string]string{})
		for range 3 {
			time.Sleep(round)
			if entries, _ := m.w.Take(); len(entries) != 0 {
				t.Errorf("later the watch takes %v, want nothing", entries)
			}
		}
	})
}

func TestWatchBeforeTheBucket(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		nc, _ := connect(t, s)
		m := watch(t, handle(t, nc), "s.*")
		m.await(time.Second, map[string]string{})
		a, _, _ := opened(t, s)
		put(t, a, "s.a", "1", 0)
		m.await(round, map[string]string{"s.a": "1"})
		deleteBucket(t, nc)
		m.await(2*round, map[string]string{})
		b, _, _ := opened(t, s)
		put(t, b, "s.a", "2", 0)
		m.await(round, map[string]string{"s.a": "2"})
	})
}

func TestWatchTakesTheNewestOnly(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, _, _ := opened(t, s)
		m := watch(t, a, ">")
		m.take()
		rev := uint64(0)
		for i := range 100 {
			rev = put(t, a, "k", strconv.Itoa(i), rev)
		}
		time.Sleep(time.Second)
		entries, synced := m.w.Take()
		if i := slices.IndexFunc(entries, func(e kv.Entry) bool { return e.Key == "k" }); !synced || i < 0 ||
			string(entries[i].Value) != "99" || entries[i].Rev != rev || len(entries) != 2 {
			t.Errorf("Take = %v, %t, want the records b and k = 99", entries, synced)
		}
	})
}

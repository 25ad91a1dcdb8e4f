package lease_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/internal/natstest"
)

// TestSimulatedServerAnswersAsTheRealOne asks both the same, in one order, and compares
// what they say: codes, revisions counted from the first, contents, what is on the feed.
func TestSimulatedServerAnswersAsTheRealOne(t *testing.T) {
	var want, got []string
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		_, nc := connect(t, s)
		want = interrogate(t, nc)
	})
	natstest.FakeTime(t, func(t *testing.T) {
		s := newSimServer(1)
		defer s.close()
		nc, err := nats.Connect("", nats.InProcessServer(s.way()))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		got = interrogate(t, nc)
	})
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Fatalf("the simulated server says\n%s\nand the real one\n%s", got[min(i, len(got)):], want[i:])
		}
	}
	if len(want) < 30 || len(got) != len(want) {
		t.Errorf("%d answers, and %d of the real server", len(got), len(want))
	}
}

// interrogate asks a server everything that sessions and claims rely on.
func interrogate(t *testing.T, nc *nats.Conn) (said []string) {
	first := uint64(0)
	say := func(what string, m *nats.Msg, err error) {
		var a struct {
			Error struct {
				Code int `json:"err_code"`
			} `json:"error"`
			Seq     uint64
			Config  json.RawMessage
			Message struct {
				Seq  uint64
				Data []byte
			}
		}
		if err == nil {
			if err := json.Unmarshal(m.Data, &a); err != nil {
				t.Fatalf("%s: %s", what, m.Data)
			}
		}
		after := func(seq uint64) uint64 { return max(seq, first) - first }
		said = append(said, fmt.Sprintf("%s: %v, code %d, stored %d, read %d %s, stream %t",
			what, err, a.Error.Code, after(a.Seq), after(a.Message.Seq), a.Message.Data, a.Config != nil))
		if first == 0 && a.Seq > 0 {
			first = a.Seq - 1
		}
	}
	ask := func(verb, req string) {
		m, err := nc.Request("$JS.API."+verb, []byte(req), time.Second)
		say(verb, m, err)
	}
	put := func(key string, rev uint64, guard, value, ttl string) {
		m := nats.NewMsg(simKV + key)
		m.Data = []byte(value)
		if rev > 0 {
			rev += first
		}
		m.Header.Set("Nats-Expected-Last-Subject-Sequence", fmt.Sprint(rev))
		if guard != "" {
			m.Header.Set("Nats-Expected-Last-Subject-Sequence-Subject", simKV+guard)
		}
		if ttl != "" {
			m.Header.Set("Nats-TTL", ttl)
		}
		answer, err := nc.RequestMsg(m, time.Second)
		say(fmt.Sprint("put ", key, " over ", guard, rev-min(first, rev)), answer, err)
	}
	get := func(key string) { ask("STREAM.MSG.GET."+simStream, `{"last_by_subj":"`+simKV+key+`"}`) }

	feed, err := nc.SubscribeSync(simFeed + "c.e.x")
	if err != nil {
		t.Fatal(err)
	}
	ask("STREAM.INFO."+simStream, "")
	get("c.e.x")
	put("c.e.x", 0, "", "nowhere", "") // 503
	config := fmt.Sprintf(`{"name":%q,"subjects":[%q],"storage":"file","num_replicas":1,"max_msgs_per_subject":1,"max_msgs":-1,"max_bytes":-1,
		"discard":"new","deny_delete":true,"deny_purge":true,"allow_msg_ttl":true,"first_seq":%d,"republish":{"src":%q,"dest":%q}}`,
		simStream, simKV+">", time.Now().UnixMicro(), simKV+">", simFeed+">")
	ask("STREAM.CREATE."+simStream, config)
	ask("STREAM.INFO."+simStream, "")
	get("c.p.a")
	put("c.p.a", 0, "", "a", "")       // 1
	put("c.p.a", 0, "", "late", "")    // refused
	put("s.a", 1, "c.p.a", "s1", "60") // 2
	put("s.a", 1, "c.p.a", "s2", "60") // 3: its own revision is not asked
	put("s.a", 0, "c.p.a", "s3", "60") // refused
	put("s.a", 3, "c.p.a", "s3", "60") // refused
	put("c.e.x", 0, "", "x1", "")      // 4
	put("c.e.x", 4, "", "x2", "")      // 5
	put("c.e.x", 4, "", "x3", "")      // refused
	put("c.p.a", 2, "s.a", "dead", "") // refused: renewed since
	put("c.p.a", 3, "s.a", "dead", "") // 6
	put("s.a", 1, "c.p.a", "s4", "60") // refused: over
	put("c.p.b", 0, "s.b", "dead", "") // 7: absent, as the guard says
	put("c.p.b", 0, "s.b", "dead", "") // 8
	for _, key := range []string{"c.p.a", "s.a", "c.e.x", "c.e.y", "s.b", "c.p.b"} {
		get(key)
	}
	time.Sleep(62 * time.Second) // the session's record is gone
	get("s.a")
	put("c.p.a", 3, "s.a", "dead again", "") // refused
	put("c.p.a", 0, "s.a", "dead again", "") // 9
	put("s.a", 9, "c.p.a", "s5", "2")        // 10
	get("s.a")
	for range 2 {
		m, err := feed.NextMsg(time.Second)
		if err != nil {
			t.Fatal(err)
		}
		seq := uint64(0)
		fmt.Sscan(lastOf(m.Header["Nats-Sequence"]), &seq)
		said = append(said, fmt.Sprintf("feed: %s %d %s", m.Subject, seq-first, m.Data))
	}
	if m, err := feed.NextMsg(time.Second); err == nil {
		said = append(said, fmt.Sprintf("feed: %s %s", m.Subject, m.Data))
	}
	return said
}

func lastOf(v []string) string {
	if len(v) == 0 {
		return ""
	}
	return v[len(v)-1]
}

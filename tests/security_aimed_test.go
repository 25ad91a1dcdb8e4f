package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/internal/permission"
)

// records reads every record of the bucket, by its key, as somebody who may.
func (r *realm) records() map[string]string {
	r.t.Helper()
	a := r.attacker("root")
	var info struct {
		State struct {
			Subjects map[string]uint64 `json:"subjects"`
		} `json:"state"`
	}
	a.ask("API.STREAM.INFO.BUCKET", `{"subjects_filter":">"}`, &info)
	all := map[string]string{}
	for subject := range info.State.Subjects {
		var got struct {
			Message struct {
				Data []byte `json:"data"`
			} `json:"message"`
		}
		a.ask("API.STREAM.MSG.GET.BUCKET", fmt.Sprintf(`{"last_by_subj":%q}`, subject), &got)
		all[strings.TrimPrefix(subject, "$KV.fab_t_production.")] = string(got.Message.Data)
	}
	return all
}

// ask sends a request to JetStream.
func (a *attacker) ask(subject, data string, answer any) {
	a.r.t.Helper()
	m, err := a.ctl.Request(abbreviations.Replace(subject), []byte(data), patience)
	if err == nil {
		err = json.Unmarshal(m.Data, answer)
	}
	if err != nil {
		a.r.t.Fatalf("%s: %v", subject, err)
	}
}

// stable are the records that nobody writes while nothing happens: sessions are
// renewed, and the attacker's own are its own affair.
func stable(all map[string]string) map[string]string {
	maps.DeleteFunc(all, func(key, _ string) bool {
		return strings.HasPrefix(key, "s.") || strings.HasSuffix(key, ".mallory")
	})
	return all
}

// A victim counts what is delivered to a node.
type victim struct {
	*fabric.Node
	got chan *fabric.Message
}

func newVictim(t *testing.T, n *fabric.Node) *victim {
	v := &victim{n, make(chan *fabric.Message, 1024)}
	go func() {
		for m, err := range n.Messages(t.Context()) {
			if err != nil {
				return
			}
			v.got <- m
		}
	}()
	return v
}

// honest sends the victim a message as the attacker may, and returns what was
// delivered before it.
func (a *attacker) honest(v *victim) (before []*fabric.Message) {
	a.r.t.Helper()
	a.say(v.PID(), "honest")
	ctx := within(a.r.t, patience)
	for {
		select {
		case m := <-v.got:
			if m.From == a.pid && string(m.Data) == "honest" {
				return before
			}
			before = append(before, m)
		case <-ctx.Done():
			a.r.t.Fatalf("%s does not receive what %s may send", v.PID(), a.pid)
		}
	}
}

// say sends as a node would.
func (a *attacker) say(to fabric.PID, text string) {
	m := nats.NewMsg(fmt.Sprintf("fab.t.production.u.%s.%s", to, a.pid))
	m.Reply = fmt.Sprintf("fab.t.production.r.%s.%s.s000000.1", a.pid, to)
	m.Data = []byte(text)
	if !a.mayPublish(a.msg, m) {
		a.r.t.Errorf("%s may not send to %s", a.pid, to)
	}
}

// questions are what the attacker may ask JetStream, which answers wherever the
// reply subject says: permissions are not asked.
var questions = map[string]string{
	"API.INFO": "", "API.STREAM.INFO.BUCKET": `{"subjects_filter":">"}`,
	"API.STREAM.MSG.GET.BUCKET": `{"last_by_subj":"$KV.fab_t_production.s.mallory"}`, "KV.s.mallory": "payload of mallory's choice",
	"KV.c.p.mallory": "{}", "KV.g.crawl.mallory": `{"key":"g.crawl.m1"}`, "P.d.m1.mallory": "x",
}

// aims are where an answer would do harm, if it were believed.
var aims = []string{
	"P.u.m1.m1", "P.u.m1.c1", "P.u.c1.m1", "P.u.m1.ext", "P.b.c1", "P.b.m1", "P.g.news.c1", "P.q.work.c1", "P.s.m1.c1.1",
	"P.y.view-members.c1", "P.y.open.c1", "P.r.m1.c1.a000000.1-0000000000", "P.r.c1.m1.s000000.1", "P.r.m1.m1.f000000.1-0000000000",
	"P.kv.c.p.m1", "P.kv.s.m1", "P.kv.v.members", "P.kv.c.r.members", "P.kv.b", "P.i.m1.guess.1", "P.i.c1.guess.1",
}

// TestAimedAnswers: JetStream can be had to publish at any subject of its account.
// Nobody takes its answers for a message, a view, an answer, or a change.
func TestAimedAnswers(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		r.found()
		c1, m1 := newVictim(t, r.join("c1")), newVictim(t, r.join("m1"))
		awaitView(t, m1.Node, members(2))
		before, epoch := stable(r.records()), m1.View().Epoch
		mallory := r.attacker("mallory")
		tried := 0
		for question, data := range questions {
			for _, aim := range aims {
				m := nats.NewMsg(abbreviations.Replace(question))
				m.Reply, m.Data = abbreviations.Replace(aim), []byte(data)
				mallory.ctl.PublishMsg(m) // a mailbox stream is not there: nobody answers that one
				tried++
			}
		}
		if err := mallory.ctl.FlushTimeout(patience); err != nil {
			t.Fatal(err)
		}
		invalid := func() uint64 { return c1.Stats().Invalid + m1.Stats().Invalid }
		settled(t, func() any { return invalid() })
		for _, v := range []*victim{c1, m1} {
			for _, m := range mallory.honest(v) {
				t.Errorf("%s received from %s, to whom nobody spoke: %.80q", v.PID(), m.From, m.Data)
			}
			if v.Incarnation() == 0 || v.Context().Err() != nil {
				t.Errorf("%s has lost its lease", v.PID())
			}
		}
		if v := m1.View(); v.Epoch != epoch || len(v.Members) != 2 {
			t.Errorf("the view is %v, was that of epoch %d", v, epoch)
		}
		if after := stable(r.records()); !maps.Equal(after, before) {
			t.Errorf("the records are\n%v, were\n%v", after, before)
		}
		if shared := r.layout == permission.Shared; (invalid() > 0) != shared {
			t.Errorf("%d invalid messages reached the nodes", invalid())
		}
		t.Logf("%d answers were aimed; %d reached a node and were dropped", tried, invalid())
	})
}

// settled waits until what is observed has been the same for a while: JetStream
// answers in no order.
func settled(t *testing.T, observe func() any) {
	t.Helper()
	ctx := within(t, patience)
	for last, same := observe(), 0; same < 5; same++ {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("it goes on: %v", last)
		}
		if now := observe(); now != last {
			last, same = now, 0
		}
	}
}

// TestDeputies: an innocent node publishes nothing where an attacker's reply subject
// says, but only at the attacker's own address.
func TestDeputies(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		r.found()
		c1, m1 := newVictim(t, r.join("c1")), r.join("m1")
		go m1.Handle(t.Context(), 2, func(_ context.Context, _ *fabric.Message) ([]byte, error) { return []byte("answer"), nil })
		awaitView(t, m1, members(2))
		before := stable(r.records())
		mallory := r.attacker("mallory")
		replies := []string{
			"API.STREAM.DELETE.BUCKET", "API.STREAM.PURGE.BUCKET", "KV.c.e.billing", "KV.c.p.c1", "KV.s.m1", "P.u.c1.m1", "P.b.m1",
			"P.r.c1.m1.q000000.1-0000000000", "P.r.m1.m1.q000000.1-0000000000", "P.r.mallory.c1.q000000.1-0000000000",
			"P.r.mallory.m1.a000000.1-0000000000", "P.r.mallory.m1.2q000000.1-0000000000", "P.r.mallory.m1.q000000.01-0000000000",
			"P.r.mallory.m1.q00000*.1-0000000000", "P.r.mallory.m1.>", "P.r.mallory.*.q000000.1-0000000000", "_INBOX.x", "P.kv.v.members", "x",
		}
		for _, reply := range replies {
			m := nats.NewMsg("fab.t.production.u.m1.mallory")
			m.Reply = abbreviations.Replace(reply)
			if !mallory.mayPublish(mallory.msg, m) {
				t.Errorf("reply %s: the request is refused, and nothing is shown", reply)
			}
		}
		// The twin: an address of its own is answered.
		answers, err := mallory.msg.SubscribeSync("fab.t.production.r.mallory.>")
		if err != nil {
			t.Fatal(err)
		}
		m := nats.NewMsg("fab.t.production.u.m1.mallory")
		m.Reply = "fab.t.production.r.mallory.m1.q000000.7-0000000000"
		mallory.mayPublish(mallory.msg, m)
		got, err := answers.NextMsg(patience)
		if err != nil || string(got.Data) != "answer" || got.Subject != "fab.t.production.r.mallory.m1.a000000.7-0000000000" {
			t.Errorf("the honest request is answered with %v, %v", got, err)
		}
		if got := m1.Stats().Invalid; got != uint64(len(replies)) {
			t.Errorf("%d requests were dropped, want %d", got, len(replies))
		}
		for _, m := range mallory.honest(c1) {
			t.Errorf("c1 received from %s: %q", m.From, m.Data)
		}
		if after := stable(r.records()); !maps.Equal(after, before) {
			t.Errorf("the records are\n%v, were\n%v", after, before)
		}
	})
}

// tricks are headers with a meaning for JetStream, on a record that the attacker
// may write. accepted says whether the record is stored.
var tricks = []struct {
	name     string
	header   nats.Header
	accepted bool
}{
	{"rollup of everything", nats.Header{"Nats-Rollup": {"all"}}, false},
	{"rollup of the key", nats.Header{"Nats-Rollup": {"sub"}}, false},
	{"purge", nats.Header{"KV-Operation": {"PURGE"}, "Nats-Rollup": {"sub"}}, false},
	{"a revision from the future", nats.Header{"Nats-Sequence": {"18446744073709551615"}, "Nats-Subject": {"$KV.fab_t_production.c.p.m1"}}, true},
	{"a marker", nats.Header{"Nats-Marker-Reason": {"MaxAge"}}, true},
	{"a deletion", nats.Header{"KV-Operation": {"DEL"}}, true},
	{"a used id", nats.Header{"Nats-Msg-Id": {"1"}}, true},
	{"another stream's", nats.Header{"Nats-Stream": {"KV_other"}}, true},
	{"an expectation of another stream", nats.Header{"Nats-Expected-Stream": {"KV_other"}}, false},
	{"a guard of a wildcard", nats.Header{"Nats-Expected-Last-Subject-Sequence": {"0"}, "Nats-Expected-Last-Subject-Sequence-Subject": {"$KV.fab_t_production.>"}}, false},
	{"a schedule", nats.Header{"Nats-Schedule": {"@at 2026-01-01T00:00:00Z"}, "Nats-Schedule-Target": {"$KV.fab_t_production.c.p.m1"}}, false},
	{"a batch", nats.Header{"Nats-Batch-Id": {"x"}, "Nats-Batch-Sequence": {"1"}, "Nats-Batch-Commit": {"1"}}, false},
	{"a counter", nats.Header{"Nats-Incr": {"1"}}, false},
	{"a status", nats.Header{"Status": {"503"}}, true},
	{"a malformed TTL", nats.Header{"Nats-TTL": {"-5s"}}, false},
	{"who asked", nats.Header{"Nats-Request-Info": {`{"acc":"FABRIC","user":"root"}`}}, true},
}

// TestHeaders: no header on a record of the attacker's own reaches anybody else's.
func TestHeaders(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		r.found()
		c1, m1 := r.join("c1"), r.join("m1")
		awaitView(t, m1, members(2))
		before, epoch, inc := stable(r.records()), m1.View().Epoch, m1.Incarnation()
		mallory := r.attacker("mallory")
		for _, trick := range tricks {
			var ack struct {
				Error *struct{ Description string }
			}
			m := nats.NewMsg("$KV.fab_t_production.s.mallory")
			m.Header, m.Data = trick.header, []byte("payload")
			answer, err := mallory.ctl.RequestMsg(m, patience)
			if err == nil {
				err = json.Unmarshal(answer.Data, &ack)
			}
			if err != nil || (ack.Error == nil) != trick.accepted {
				t.Errorf("%s: answered with %+v, %v; accepted should be %v", trick.name, ack.Error, err, trick.accepted)
			}
		}
		m := nats.NewMsg("fab.t.production.u.m1.mallory")
		m.Header = nats.Header{"Nats-Trace-Dest": {"fab.t.production.u.c1.m1"}, "Nats-Trace-Only": {"true"}}
		mallory.mayPublish(mallory.msg, m)
		// A renewal of everybody later, nothing has happened.
		time.Sleep(c1.Lease())
		if after := stable(r.records()); !maps.Equal(after, before) {
			t.Errorf("the records are\n%v, were\n%v", after, before)
		}
		if v := m1.View(); v.Epoch != epoch || m1.Incarnation() != inc {
			t.Errorf("the view is %v, was that of epoch %d", v, epoch)
		}
	})
}

// vandalised are the records that an answer is aimed at.
var vandalised = []string{"c.e.billing", "c.p.x", "g.crawl.m1", "v.other"}

// TestVandalism: in an account that has the bucket, an answer of JetStream's aimed
// at a key is stored as that record. It is never believed, it is reported and not
// overwritten. With an account for each process it is not stored.
func TestVandalism(t *testing.T) {
	everywhere(t, func(t *testing.T, r *realm) {
		r.found()
		c1 := r.join("c1")
		mallory := r.attacker("mallory")
		// The twin: it may write its own key, by this way as well as by any.
		for _, key := range append(slices.Clone(vandalised), "s.mallory") {
			m := nats.NewMsg("$JS.API.STREAM.INFO.KV_fab_t_production")
			m.Reply = "$KV.fab_t_production." + key
			if err := mallory.ctl.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := mallory.ctl.FlushTimeout(patience); err != nil {
			t.Fatal(err)
		}
		settled(t, func() any { return fmt.Sprint(len(r.records())) })
		all := r.records()
		if all["s.mallory"] == "" {
			t.Error("mallory may not write its own key")
		}
		for _, key := range vandalised {
			if got := all[key]; (got != "") != (r.layout != permission.Isolated) {
				t.Errorf("%s holds %q", key, got)
			}
		}
		term, err := ballot(t, c1).Campaign(within(t, patience))
		if r.layout == permission.Isolated {
			if err != nil {
				t.Errorf("Campaign = %v", err)
			}
			return
		}
		if err == nil {
			t.Fatalf("term %d was granted on a record that is nobody's", term.Number())
		}
		if got := r.records()["c.e.billing"]; got != all["c.e.billing"] {
			t.Errorf("the record was overwritten: %q", got)
		}
		if !strings.Contains(err.Error(), "c.e.billing") {
			t.Errorf("Campaign = %v, which does not name the key", err)
		}
	})
}

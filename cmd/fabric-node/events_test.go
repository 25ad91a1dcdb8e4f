package main

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/natsfabric/natsfabric/balance"
	"github.com/natsfabric/natsfabric/election"
	"github.com/natsfabric/natsfabric/fabric"
)

var when = time.Date(2026, 3, 4, 5, 6, 7, 800_000_000, time.FixedZone("", 3600))

func TestEvents(t *testing.T) {
	for _, tt := range []struct {
		ev     event
		object string
		line   string
	}{
		{
			joinedEvent{"joined", "web-1", 7, "shop", "dev"},
			`{"type":"joined","pid":"web-1","incarnation":7,"cluster":"shop","env":"dev"}`,
			"joined        web-1 in shop/dev, incarnation 7",
		},
		{
			newMessageEvent(&fabric.Message{From: "a", To: "b", ID: 3, Data: []byte("x<y>&\"é")}, false),
			`{"type":"message","from":"a","to":"b","id":3,"broadcast":false,"data":"x<y>&\"é"}`,
			"message       from a, 8 bytes",
		},
		{
			newMessageEvent(&fabric.Message{From: "a", To: fabric.Everyone, ID: 4}, true),
			`{"type":"message","from":"a","to":"*","id":4,"broadcast":true,"data":""}`,
			"message       from a to all, 0 bytes: ",
		},
		{
			newMessageEvent(&fabric.Message{From: "a", To: "b", ID: 5, Data: []byte{0xff, 0}}, true),
			`{"type":"message","from":"a","to":"b","id":5,"broadcast":false,"data_base64":"/wA="}`,
			"message       from a, 2 bytes: /wA= (base64)",
		},
		{
			newMessageEvent(&fabric.Message{From: "a", To: fabric.Everyone, Topic: "t", ID: 6}, false),
			`{"type":"message","from":"a","to":"*","id":6,"broadcast":false,"topic":"t","data":""}`,
			"message       from a to topic t, 0 bytes",
		},
		{
			newLeaderEvent("billing", election.Leader{PID: "web-1", Term: 2, Token: 99}),
			`{"type":"leader","name":"billing","pid":"web-1","term":2,"token":99}`,
			"leader        web-1 leads billing, term 2, token 99",
		},
		{
			newLeaderEvent("billing", election.Leader{}),
			`{"type":"leader","name":"billing","pid":"","term":0,"token":0}`,
			"leader        nobody leads billing",
		},
		{
			newBalancedEvent(balance.Share{First: 3, Workers: 4, Total: 7, Epoch: 12}),
			`{"type":"balanced","first":3,"workers":4,"total":7,"epoch":12}`,
			"balanced      indices 3-6 of 7",
		},
		{
			newBalancedEvent(balance.Share{First: -1, Total: 7}),
			`{"type":"balanced","first":-1,"workers":0,"total":7,"epoch":0}`,
			"balanced      no index of 7",
		},
		{
			newBalancedEvent(balance.Share{First: 2, Workers: 1, Total: 7, Epoch: 1}),
			`{"type":"balanced","first":2,"workers":1,"total":7,"epoch":1}`,
			"balanced      index 2 of 7",
		},
		{nodeEvent{Type: "left", PID: "a"}, `{"type":"left","pid":"a"}`, "left          a"},
		{
			nodeEvent{Type: "disconnected", PID: "a", Error: "EOF"},
			`{"type":"disconnected","pid":"a","error":"EOF"}`, "disconnected  a: EOF",
		},
		{
			newChangeEvent(fabric.Change{Kind: fabric.Failed, Epoch: 9, Member: fabric.Member{PID: "a", Incarnation: 5, Host: "h"}}, when),
			`{"type":"fail","pid":"a","incarnation":5,"epoch":9,"time":"2026-03-04T04:06:07.8Z"}`,
			"fail          a on h, incarnation 5, epoch 9",
		},
		{serverEvent{Type: "ready", URL: "nats://h:1"}, `{"type":"ready","url":"nats://h:1"}`, "ready         nats-server 2.15.2 at nats://h:1"},
		{serverEvent{Type: "stopping"}, `{"type":"stopping"}`, "stopping"},
	} {
		var object, line bytes.Buffer
		if err := newEvents(&object, false).emit(tt.ev); err != nil {
			t.Fatal(err)
		}
		if got := object.String(); got != tt.object+"\n" {
			t.Errorf("object %q\n  want %q", got, tt.object)
		}
		if err := newEvents(&line, true).emit(tt.ev); err != nil {
			t.Fatal(err)
		}
		if got := line.String(); len(got) < 10 || got[10:] != tt.line+"\n" {
			t.Errorf("line %q\nwant a time, two blanks and %q", got, tt.line)
		}
	}
}

type brokenWriter struct{ writes int }

func (b *brokenWriter) Write([]byte) (int, error) { b.writes++; return 0, io.ErrClosedPipe }

func TestEventsStopAtTheFirstFailure(t *testing.T) {
	w := &brokenWriter{}
	e := newEvents(w, false)
	for range 3 {
		if err := e.emit(nodeEvent{Type: "left"}); err == nil {
			t.Error("emit to a closed pipe: no error")
		}
	}
	if w.writes != 1 {
		t.Errorf("%d writes, want 1", w.writes)
	}
}

func testApp(output string) (*app, *bytes.Buffer, *bytes.Buffer) {
	var stdout, stderr bytes.Buffer
	a := &app{stdin: strings.NewReader("from stdin"), stdout: &stdout, stderr: &stderr, told: &stderr, log: slog.New(slog.DiscardHandler)}
	a.opts = options{cluster: "mycluster", env: "dev", group: defaultGroup, output: output, timeout: defaultTimeout}
	return a, &stdout, &stderr
}

func TestPrintMembers(t *testing.T) {
	view := fabric.View{Epoch: 4, Members: []fabric.Member{
		{PID: "a", Incarnation: 10, Host: "h1", Since: when, Meta: map[string]string{"zone": "b", "role": "web"}},
		{PID: "b-long", Incarnation: 20, Host: "h2", Since: when},
	}}
	for _, tt := range []struct {
		output string
		view   fabric.View
		want   string
	}{
		{"ndjson", fabric.View{}, `{"cluster":"mycluster","env":"dev","epoch":0,"members":[]}` + "\n"},
		{"ndjson", view, `{"cluster":"mycluster","env":"dev","epoch":4,"members":[` +
			`{"pid":"a","incarnation":10,"host":"h1","state":"up","since":"2026-03-04T04:06:07.8Z","meta":{"role":"web","zone":"b"}},` +
			`{"pid":"b-long","incarnation":20,"host":"h2","state":"up","since":"2026-03-04T04:06:07.8Z","meta":{}}]}` + "\n"},
		{"json", fabric.View{}, "{\n  \"cluster\": \"mycluster\",\n  \"env\": \"dev\",\n  \"epoch\": 0,\n  \"members\": []\n}\n"},
		{"table", fabric.View{}, ""},
	} {
		a, stdout, _ := testApp(tt.output)
		if err := a.printMembers(tt.view); err != nil {
			t.Fatal(err)
		}
		if got := stdout.String(); got != tt.want {
			t.Errorf("-o %s: got %s\nwant %s", tt.output, got, tt.want)
		}
	}
	a, stdout, stderr := testApp("table")
	if err := a.membersTable(view, when.Add(90*time.Minute)); err != nil {
		t.Fatal(err)
	}
	want := "" +
		"PID     STATE  HOST     UP  INCARNATION  META\n" +
		"a       up     h1    1h30m           10  role=web zone=b\n" +
		"b-long  up     h2    1h30m           20\n"
	if got := stdout.String(); got != want {
		t.Errorf("table:\n%s\nwant:\n%s", got, want)
	}
	if want := "fabric-node: 2 members in mycluster/dev, epoch 4\n"; stderr.String() != want {
		t.Errorf("stderr %q, want %q", stderr, want)
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 41 * time.Second: "41s", 130 * time.Second: "2m10s",
		90 * time.Minute: "1h30m", 49 * time.Hour: "2d1h",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %q, want %q", d, got, want)
		}
	}
}

// The words are those of the transcript in libcluster's README.
func TestClusterTest(t *testing.T) {
	a, stdout, stderr := testApp("table")
	a.opts.verbose = true
	c := newClusterTest(a, 1)
	c.balanced(balance.Share{First: 0, Workers: 1, Total: 1}, []balance.Placed{{PID: "2014", First: 0, Workers: 1, Self: true}}, false)
	c.say("cluster joined; sleeping until terminated")
	c.balanced(balance.Share{First: 0, Workers: 1, Total: 2}, []balance.Placed{
		{PID: "2014", First: 0, Workers: 1, Self: true}, {PID: "976f", First: 1, Workers: 1},
	}, false)
	c.balanced(balance.Share{First: -1, Total: 1}, []balance.Placed{{PID: "976f", First: 1, Workers: 1}}, false)
	wantOut := `cluster-test: cluster has re-balanced:
   instance index:        0
   instance thread count: 1
   total thread count:    1
cluster-test: cluster joined; sleeping until terminated
cluster-test: cluster has re-balanced:
   instance index:        0
   instance thread count: 1
   total thread count:    2
cluster-test: cluster has re-balanced:
   instance index:        -1
   instance thread count: 1
   total thread count:    1
`
	wantErr := `libcluster<7>: libcluster: nats: re-balancing cluster mycluster/dev:
libcluster<7>: * 2014 [0]
libcluster<5>: libcluster: nats: cluster mycluster/dev has re-balanced: new base is 0 (was -1), new total is 1 (was 0)
libcluster<7>: libcluster: re-balanced; this instance has index 0 (1 threads) from a total of 1
libcluster<7>: libcluster: nats: re-balancing cluster mycluster/dev:
libcluster<7>: * 2014 [0]
libcluster<7>:   976f [1]
libcluster<5>: libcluster: nats: cluster mycluster/dev has re-balanced: new base is 0 (was 0), new total is 2 (was 1)
libcluster<7>: libcluster: re-balanced; this instance has index 0 (1 threads) from a total of 2
libcluster<7>: libcluster: nats: re-balancing cluster mycluster/dev:
libcluster<7>:   976f [0]
libcluster<5>: libcluster: nats: this instance is no longer a member of mycluster/dev
libcluster<7>: libcluster: re-balanced; this instance has index -1 (1 threads) from a total of 1
`
	if stdout.String() != wantOut || stderr.String() != wantErr {
		t.Errorf("stdout:\n%s\nwant:\n%s\nstderr:\n%s\nwant:\n%s", stdout, wantOut, stderr, wantErr)
	}
}

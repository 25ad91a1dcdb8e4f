package fabric

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
)

// ask requests what is asked of services, and parses the answer.
func ask[T any](t *testing.T, nc *nats.Conn, subject string) (v T) {
	t.Helper()
	m, err := nc.RequestWithContext(deadline(t), subject, nil)
	if err != nil {
		t.Fatalf("%s: %v", subject, err)
	}
	if err := json.Unmarshal(m.Data, &v); err != nil {
		t.Fatalf("%s: %v", subject, err)
	}
	return v
}

func TestMicro(t *testing.T) {
	s := startServer(t)
	ctx := deadline(t)
	n, err := Join(ctx, Config{Cluster: "c1", Env: "test", PID: "a", URL: s.ClientURL(), Micro: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Leave(ctx)
	plain, err := Join(ctx, Config{Cluster: "c1", Env: "test", PID: "b", URL: s.ClientURL()})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Leave(ctx)
	raw := connect(t, s)

	for _, subject := range []string{"$SRV.PING", "$SRV.PING.fab-c1", "$SRV.PING.fab-c1.test_a"} {
		p := ask[micro.Ping](t, raw, subject)
		if p.Type != micro.PingResponseType || p.Name != "fab-c1" || p.ID != "test_a" || p.Version != "1.0.0" ||
			p.Metadata["pid"] != "a" || p.Metadata["env"] != "test" || p.Metadata["cluster"] != "c1" ||
			p.Metadata["incarnation"] != strconv.FormatUint(n.Incarnation(), 10) {
			t.Errorf("%s: %+v", subject, p)
		}
	}
	stop := serve(t, n, "mail", 1, func(_ context.Context, m *Message) ([]byte, error) {
		if len(m.Data) == 0 {
			return nil, errors.New("empty")
		}
		return m.Data, nil
	})
	info := ask[micro.Info](t, raw, "$SRV.INFO.fab-c1.test_a")
	if info.Type != micro.InfoResponseType || len(info.Endpoints) != 2 || info.Endpoints[0].Name != "inbox" || info.Endpoints[1].Name != "mail" {
		t.Fatalf("%+v", info)
	}
	if m, err := raw.RequestWithContext(ctx, info.Endpoints[1].Subject, []byte("x")); err != nil || string(m.Data) != "x" {
		t.Errorf("a request where the endpoint is said to be: %v, %v", m, err)
	}
	if err := raw.Publish(info.Endpoints[0].Subject, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, n); m.From != External || string(m.Data) != "x" {
		t.Errorf("received %+v", m)
	}
	if _, err := plain.Anycast(ctx, "mail", nil); err == nil {
		t.Error("the handler did not fail")
	}
	for ctx.Err() == nil { // what the handler did is counted when its answer is on its way
		stats := ask[micro.Stats](t, raw, "$SRV.STATS.fab-c1")
		var data Stats
		if len(stats.Endpoints) != 2 || json.Unmarshal(stats.Endpoints[0].Data, &data) != nil || data.Received != 3 {
			t.Fatalf("%+v", stats)
		}
		if e := stats.Endpoints[1]; e.NumRequests == 2 && e.NumErrors == 1 && e.LastError == "empty" && e.ProcessingTime > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	_ = stop()
	if info := ask[micro.Info](t, raw, "$SRV.INFO"); len(info.Endpoints) != 1 {
		t.Errorf("nothing is served any more: %+v", info)
	}
	if err := n.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	for { // the server may not have seen yet that the connection is closed
		_, err := raw.Request("$SRV.PING", nil, 100*time.Millisecond)
		if errors.Is(err, nats.ErrNoResponders) {
			break
		}
		if !errors.Is(err, nats.ErrTimeout) || ctx.Err() != nil {
			t.Fatalf("after Leave: %v", err)
		}
	}
}

// TestMicroAnswersPlainClientsOnly: a node does not publish, with its rights, where
// who asks would have it.
func TestMicroAnswersPlainClientsOnly(t *testing.T) {
	s := startServer(t)
	ctx := deadline(t)
	n, err := Join(ctx, Config{Cluster: "c1", Env: "test", PID: "a", URL: s.ClientURL(), Micro: true})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Leave(ctx)
	raw := connect(t, s)
	js, err := jetstream.New(raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	spied, err := raw.SubscribeSync("spied")
	if err != nil {
		t.Fatal(err)
	}
	for _, reply := range []string{"", "spied", "$JS.API.STREAM.DELETE.S", "s", "_INBOX", "_INBOX.*", "fab.c1.test.u.b.a"} {
		for _, verb := range []string{"PING", "INFO", "STATS"} {
			// Other clients refuse to publish with a wildcard; a raw one need not.
			if err := raw.PublishMsg(&nats.Msg{Subject: "$SRV." + verb, Reply: reply}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, verb := range []string{"PING", "INFO", "STATS"} {
		ask[micro.Ping](t, raw, "$SRV."+verb) // each was behind the others
	}
	if _, err := js.Stream(ctx, "S"); err != nil {
		t.Errorf("the stream: %v", err)
	}
	if got, _, err := spied.Pending(); err != nil || got != 0 {
		t.Errorf("%d answers where nobody may have them", got)
	}
	if got := n.Stats().Invalid; got != 21 {
		t.Errorf("Invalid = %d, want 21", got)
	}
	if _, err := Join(ctx, Config{Cluster: "c1", PID: "p", URL: s.ClientURL(), Micro: true, Passive: true}); !errors.Is(err, ErrConfig) {
		t.Errorf("a passive node: %v", err)
	}
}

package typed_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/natsfabric/natsfabric/fabric"
	"github.com/natsfabric/natsfabric/fabric/typed"
	"github.com/natsfabric/natsfabric/internal/natstest"
)

func join(t *testing.T, s *natstest.Server, pid fabric.PID) *fabric.Node {
	t.Helper()
	n, err := fabric.Join(t.Context(), fabric.Config{
		Cluster: "c", PID: pid,
		NATS: append(natstest.FastOptions(), nats.InProcessServer(s.Provider())),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Leave(context.WithoutCancel(t.Context())) })
	return n
}

// serve runs the mux on a node until the test ends.
func serve(t *testing.T, n *fabric.Node, x *typed.Mux) {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() { _ = n.Handle(ctx, 1, x.Serve) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// echo has the mux answer each T with itself.
func echo[T any](t *testing.T, x *typed.Mux) {
	t.Helper()
	err := typed.HandleCall(x, func(_ context.Context, m *typed.Message[T]) (T, error) { return m.Value, nil })
	if err != nil {
		t.Fatal(err)
	}
}

// roundTrip checks that a value comes back as it went, in a codec.
func roundTrip[T any](t *testing.T, n *fabric.Node, c typed.Codec, v T) {
	t.Helper()
	got, err := typed.CallMsg[T, T](t.Context(), n, &typed.Message[T]{Message: &fabric.Message{To: "b"}, Value: v, Codec: c})
	if err != nil || !reflect.DeepEqual(got, v) {
		t.Errorf("%T %+v in %T came back as %+v, %v", v, v, c, got, err)
	}
}

type (
	id     string
	nested struct {
		Name string
		Of   map[string][]nested
		At   *time.Time
		private
	}
	private     struct{ hidden int }
	page[T any] struct{ Items []T }
)

var _ = nested{}.hidden // what cannot be seen from outside makes no difference

// other is here what nested is elsewhere.
type other struct{ Name string }

func (other) FabricType() string { return "shop.Nested" }

type third struct{ Name string }

func (*third) FabricType() string { return "shop.Nested" }

func TestValuesComeBackAsTheyWent(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		x := typed.NewMux(typed.Config{Codecs: []typed.Codec{typed.Gob{}}})
		echo[string](t, x)
		echo[id](t, x)
		echo[[]byte](t, x)
		echo[json.RawMessage](t, x)
		echo[int](t, x)
		echo[map[string]float64](t, x)
		echo[nested](t, x)
		echo[page[nested]](t, x)
		echo[[]nested](t, x)
		echo[[3]int](t, x)
		echo[struct{ A, B int }](t, x)
		echo[time.Time](t, x)
		serve(t, b, x)
		at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
		deep := nested{Name: "a", Of: map[string][]nested{"x": {{Name: "y", At: &at}}}}
		for _, c := range []typed.Codec{nil, typed.JSON{}, typed.Gob{}} {
			roundTrip(t, a, c, "héllo\x00")
			roundTrip(t, a, c, id("7"))
			roundTrip(t, a, c, []byte{0, 1, 255})
			roundTrip(t, a, c, -7)
			roundTrip(t, a, c, map[string]float64{"pi": math.Pi})
			roundTrip(t, a, c, deep)
			roundTrip(t, a, c, &deep)
			roundTrip(t, a, c, page[nested]{[]nested{deep}})
			roundTrip(t, a, c, []nested{deep})
			roundTrip(t, a, c, [3]int{1, 2, 3})
			roundTrip(t, a, c, struct{ A, B int }{1, 2})
			roundTrip(t, a, c, at)
		}
		roundTrip(t, a, typed.Raw{}, "raw")
		roundTrip(t, a, typed.Raw{}, json.RawMessage(`{"is":"what it is`))
		if got := x.Stats(); got != (typed.Stats{Handled: 38}) {
			t.Errorf("Stats = %+v, want 38 handled", got)
		}
	})
}

// A send and a broadcast arrive with what else the message has; a handler without
// an answer acknowledges.
func TestSendAndBroadcast(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		x := typed.NewMux(typed.Config{})
		got := make(chan *typed.Message[*nested], 4) // the messages of this test
		fail := errors.New("no more")
		if err := typed.Handle(x, func(_ context.Context, m *typed.Message[*nested]) error {
			got <- m
			if m.Value.Name == "bad" {
				return fail
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		serve(t, b, x)
		if err := typed.Send(t.Context(), a, "b", nested{Name: "1"}); err != nil {
			t.Fatal(err)
		}
		if err := typed.Broadcast(t.Context(), a, &nested{Name: "2"}); err != nil {
			t.Fatal(err)
		}
		m := &typed.Message[nested]{
			Message: &fabric.Message{To: "b", Mode: fabric.Acked, Ack: fabric.Handled, ID: 77, Header: nats.Header{"k": {"v"}}},
			Value:   nested{Name: "3"},
		}
		if err := typed.SendMsg(t.Context(), a, m); err != nil {
			t.Fatal(err)
		}
		if m.Type != "" || m.Data != nil {
			t.Error("SendMsg changed the message")
		}
		if _, err := typed.Call[nested, struct{}](t.Context(), a, "b", nested{Name: "4"}); err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"1", "2", "3", "4"} {
			m := <-got
			if m.Value.Name != want || m.From != "a" || (m.To == fabric.Everyone) != (i == 1) {
				t.Errorf("message %d is %q from %s to %s", i, m.Value.Name, m.From, m.To)
			}
			if i == 2 && (m.ID != 77 || m.Header.Get("k") != "v" || m.Mode != fabric.Acked) {
				t.Errorf("message 3 is %+v", m.Message)
			}
		}
		m.Value.Name = "bad"
		err := typed.SendMsg(t.Context(), a, m)
		if e, ok := errors.AsType[*fabric.RemoteError](err); !ok || e.Message != "no more" || e.Code != "" {
			t.Errorf("SendMsg = %v, want the handler's error", err)
		}
	})
}

// Topics and services carry values, too.
func TestPublishAndAnycast(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		topic, err := b.JoinTopic(t.Context(), "news")
		if err != nil {
			t.Fatal(err)
		}
		defer topic.Leave()
		x := typed.NewMux(typed.Config{})
		got := make(chan *typed.Message[nested], 1)
		if err := typed.Handle(x, func(_ context.Context, m *typed.Message[nested]) error { got <- m; return nil }); err != nil {
			t.Fatal(err)
		}
		echo[string](t, x)
		serve(t, b, x)
		if err := typed.Publish(t.Context(), a, "news", nested{Name: "n"}); err != nil {
			t.Fatal(err)
		}
		if m := <-got; m.Value.Name != "n" || m.Topic != "news" {
			t.Errorf("published, and received %+v", m)
		}
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); wg.Wait() }()
		wg.Go(func() { _ = b.Serve(ctx, "echo", 1, x.Serve) })
		synctest.Wait() // until it serves
		if v, err := typed.Anycast[string, string](t.Context(), a, "echo", "v"); v != "v" || err != nil {
			t.Errorf("Anycast = %q, %v", v, err)
		}
		_, err = typed.Anycast[int, string](t.Context(), a, "echo", 7)
		if e, ok := errors.AsType[*fabric.RemoteError](err); !ok || e.PID != "b" || !errors.Is(err, typed.ErrUnknownType) {
			t.Errorf("Anycast of an unknown type: %v", err)
		}
		if _, err := typed.Anycast[int, string](t.Context(), a, "nobody", 7); !errors.Is(err, fabric.ErrNoReceiver) {
			t.Errorf("Anycast to nobody: %v", err)
		}
	})
}

// refusals are messages that cannot be handled, and what their senders are told.
func TestRefused(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		var refused []error
		x := typed.NewMux(typed.Config{OnRefused: func(_ *fabric.Message, err error) { refused = append(refused, err) }})
		echo[nested](t, x)
		if err := typed.HandleCall(x, func(context.Context, *typed.Message[int]) (float64, error) { return math.NaN(), nil }); err != nil {
			t.Fatal(err)
		}
		serve(t, b, x)
		jsonNested := typeOf(t, typed.JSON{}, nested{})
		for _, c := range []struct {
			name  string
			typ   string
			data  string
			want  error
			code  string
			count func(typed.Stats) uint64
		}{
			{"no type", "", "x", typed.ErrUnknownType, typed.CodeUnknownType, func(s typed.Stats) uint64 { return s.UnknownType }},
			{"other's type", "order", "x", typed.ErrUnknownType, typed.CodeUnknownType, func(s typed.Stats) uint64 { return s.UnknownType }},
			{"no handler", typeOf(t, typed.JSON{}, other{}), "{}", typed.ErrUnknownType, typed.CodeUnknownType, func(s typed.Stats) uint64 { return s.UnknownType }},
			{"gob not taken", typeOf(t, typed.Gob{}, nested{}), "x", typed.ErrUnknownCodec, typed.CodeUnknownCodec, func(s typed.Stats) uint64 { return s.UnknownCodec }},
			{"no codec", "z" + jsonNested[1:], "x", typed.ErrUnknownCodec, typed.CodeUnknownCodec, func(s typed.Stats) uint64 { return s.UnknownCodec }},
			{"not JSON", jsonNested, "{", typed.ErrDecode, typed.CodeDecode, func(s typed.Stats) uint64 { return s.Undecodable }},
			{"more than JSON", jsonNested, "{}{}", typed.ErrDecode, typed.CodeDecode, func(s typed.Stats) uint64 { return s.Undecodable }},
			{"other JSON", jsonNested, `{"Name":7}`, typed.ErrDecode, typed.CodeDecode, func(s typed.Stats) uint64 { return s.Undecodable }},
			{"answer", typeOf(t, typed.JSON{}, 7), "7", typed.ErrEncode, typed.CodeEncode, func(s typed.Stats) uint64 { return s.Unencodable }},
		} {
			before, seen := c.count(x.Stats()), len(refused)
			raw := &fabric.Message{To: "b", Type: c.typ, Data: []byte(c.data)}
			_, err := typed.CallMsg[[]byte, []byte](t.Context(), rawSender{a, raw}, &typed.Message[[]byte]{Message: raw})
			e, ok := errors.AsType[*fabric.RemoteError](err)
			if !ok || e.Code != c.code || e.PID != "b" || !errors.Is(err, c.want) {
				t.Errorf("%s: the requester gets %v, want %v with code %s", c.name, err, c.want, c.code)
			}
			if err := a.SendMsg(t.Context(), raw); err != nil { // awaits nothing
				t.Fatal(err)
			}
			raw.Mode, raw.Ack = fabric.Acked, fabric.Handled
			err = typed.SendMsg(t.Context(), rawSender{a, raw}, &typed.Message[[]byte]{Message: raw})
			if c.want != typed.ErrEncode && !errors.Is(err, c.want) {
				t.Errorf("%s: the sender gets %v, want %v", c.name, err, c.want)
			}
			want := uint64(3)
			if c.want == typed.ErrEncode {
				want = 1 // only a request has an answer
			}
			if got := c.count(x.Stats()) - before; got != want || uint64(len(refused)-seen) != want || !errors.Is(refused[seen], c.want) {
				t.Errorf("%s: %d counted and %v shown, want %d", c.name, got, refused[seen:], want)
			}
		}
	})
}

// typeOf returns the Type of a message in which v is sent.
func typeOf[T any](t testing.TB, c typed.Codec, v T) string {
	t.Helper()
	var sent sink
	if err := typed.SendMsg(t.Context(), &sent, &typed.Message[T]{Value: v, Codec: c}); err != nil {
		t.Fatal(err)
	}
	return sent.m.Type
}

// A sink keeps the last message sent.
type sink struct{ m *fabric.Message }

func (s *sink) SendMsg(_ context.Context, m *fabric.Message) error { s.m = m; return nil }
func (s *sink) RequestMsg(_ context.Context, m *fabric.Message) (*fabric.Message, error) {
	return m, nil
}

// A rawSender sends m instead of what it is given.
type rawSender struct {
	n *fabric.Node
	m *fabric.Message
}

func (s rawSender) SendMsg(ctx context.Context, _ *fabric.Message) error {
	return s.n.SendMsg(ctx, s.m)
}
func (s rawSender) RequestMsg(ctx context.Context, _ *fabric.Message) (*fabric.Message, error) {
	return s.n.RequestMsg(ctx, s.m)
}

func TestAnswerOfAnotherType(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		x := typed.NewMux(typed.Config{
			Codecs:   []typed.Codec{typed.Gob{}},
			Fallback: func(_ context.Context, m *fabric.Message) ([]byte, error) { return m.Data, nil },
		})
		echo[nested](t, x)
		serve(t, b, x)
		ctx := t.Context()
		_, err := typed.Call[nested, other](ctx, a, "b", nested{})
		if _, remote := errors.AsType[*fabric.RemoteError](err); remote || !errors.Is(err, typed.ErrUnknownType) {
			t.Errorf("an answer of another type gives %v", err)
		}
		_, err = typed.Call[string, string](ctx, a, "b", "to the fallback")
		if !errors.Is(err, typed.ErrUnknownType) {
			t.Errorf("an answer without a type gives %v", err)
		}
		if got := x.Stats(); got != (typed.Stats{Handled: 1}) {
			t.Errorf("Stats = %+v, want one handled", got)
		}
	})
}

func TestNotEncodable(t *testing.T) {
	var s sink
	ctx := t.Context()
	for name, err := range map[string]error{
		"any":            typed.Send[any](ctx, &s, "b", 7),
		"error":          typed.Send[error](ctx, &s, "b", errors.New("x")),
		"func":           typed.Send(ctx, &s, "b", func() {}),
		"nil pointer":    typed.Send[*nested](ctx, &s, "b", nil),
		"pointer to one": typed.Send(ctx, &s, "b", new(*nested)),
		"chan inside":    typed.Send(ctx, &s, "b", struct{ C chan int }{}),
		"NaN":            typed.Send(ctx, &s, "b", math.NaN()),
		"raw struct":     typed.SendMsg(ctx, &s, &typed.Message[nested]{Codec: typed.Raw{}}),
		"gob of nothing": typed.SendMsg(ctx, &s, &typed.Message[struct{}]{Codec: typed.Gob{}}),
	} {
		if !errors.Is(err, typed.ErrEncode) {
			t.Errorf("%s: %v, want ErrEncode", name, err)
		}
		if _, remote := errors.AsType[*fabric.RemoteError](err); remote {
			t.Errorf("%s: %v claims to be from elsewhere", name, err)
		}
	}
	if s.m != nil {
		t.Errorf("%+v was sent", s.m)
	}
}

func TestHandleRefusesTypes(t *testing.T) {
	x := typed.NewMux(typed.Config{})
	echo[nested](t, x)
	echo[other](t, x)
	for name, err := range map[string]error{
		"twice":     typed.Handle(x, func(context.Context, *typed.Message[nested]) error { return nil }),
		"pointer":   typed.Handle(x, func(context.Context, *typed.Message[*nested]) error { return nil }),
		"same name": typed.Handle(x, func(context.Context, *typed.Message[third]) error { return nil }),
		"interface": typed.Handle(x, func(context.Context, *typed.Message[any]) error { return nil }),
		"answer": typed.HandleCall(x, func(context.Context, *typed.Message[int]) (any, error) {
			return nil, nil
		}),
	} {
		if _, ok := errors.AsType[*typed.TypeError](err); !ok {
			t.Errorf("%s: %v, want a *TypeError", name, err)
		}
	}
	if err := typed.Handle(x, func(context.Context, *typed.Message[int]) error { return nil }); err != nil {
		t.Errorf("after a refused one: %v", err)
	}
}

// A type that says its name is that name, whichever it is here.
func TestNamesAgree(t *testing.T) {
	if got, want := typeOf(t, nil, other{}), typeOf(t, nil, &third{}); got != want {
		t.Errorf("types of one name are %s and %s", got, want)
	}
	names := map[string]string{}
	for name, typ := range map[string]string{
		"nested": typeOf(t, nil, nested{}), "other": typeOf(t, nil, other{}), "int": typeOf(t, nil, 1),
		"page of nested": typeOf(t, nil, page[nested]{}), "page of int": typeOf(t, nil, page[int]{}),
		"slice": typeOf(t, nil, []nested{}), "map": typeOf(t, nil, map[string]nested{}),
		"array": typeOf(t, nil, [2]nested{}), "struct": typeOf(t, nil, struct{ A nested }{}),
		"string": typeOf(t, nil, ""), "id": typeOf(t, nil, id("")), "gob": typeOf(t, typed.Gob{}, nested{}),
	} {
		if names[typ] != "" || len(typ) > fabric.MaxType {
			t.Errorf("%s and %s are both %s", name, names[typ], typ)
		}
		names[typ] = name
	}
	// What is on the wire must not change between versions.
	if got := typeOf(t, nil, ""); got != "R9dkZEEYNWbw" {
		t.Errorf("a string is %s", got)
	}
	if got := typed.GoName(reflect.TypeFor[struct {
		A []*nested `json:"a"`
	}]()); !strings.HasPrefix(got, "struct{A []*github.com/") {
		t.Errorf("GoName = %s", got)
	}
}

// TestAnswerAfterEnd: what a handler returns is the answer, its context having ended
// notwithstanding.
func TestAnswerAfterEnd(t *testing.T) {
	natstest.Bubble(t, func(t *testing.T, s *natstest.Server) {
		a, b := join(t, s, "a"), join(t, s, "b")
		x := typed.NewMux(typed.Config{})
		err := typed.HandleCall(x, func(ctx context.Context, m *typed.Message[string]) (string, error) {
			<-ctx.Done()
			return m.Value, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = b.Handle(t.Context(), 1, func(ctx context.Context, m *fabric.Message) ([]byte, error) {
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				return x.Serve(ctx, m)
			})
		})
		got, err := typed.Call[string, string](t.Context(), a, "b", "x")
		if err != nil || got != "x" {
			t.Errorf("answer %q, %v", got, err)
		}
		if err := b.Leave(t.Context()); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}
